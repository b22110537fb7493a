"""docs/performance.md from benchmarks/results/*.json and the text in performance_template.md.

    python benchmarks/report.py            # writes docs/performance.md
    python benchmarks/report.py --check    # exit code 1 if it is not what the results say

The template is Markdown with places to fill, so that no number is typed by hand:

    {{tables}}                                             machine and table of every results file of run.py
    {{table:each_change_cpu}}                              the `table` of a file whose script is gone
    {{cpu:inference_fp32.ratios.stock.median:.2f}}         one number: device (of run.py) or name of a file, path in
                                                           its JSON, format
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TEMPLATE = FOLDER / "performance_template.md"
DOCUMENT = FOLDER.parent / "docs" / "performance.md"
COLUMNS = ("ours", "peer", "peer's", "ratio (quartiles)", "target", "peak MiB, ours / peer", "largest difference")
COLUMNS += ("ours over floor",)
_CONSOLE = "{:<28}{:<9}{:<16}{:<9}{:<20}{:<14}{:<23}{:<20}{}"
HEADER = _CONSOLE.format("case", *COLUMNS)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, results: dict[str, Any]) -> None:
    """Whole or not at all: an interrupted run leaves the results that were there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(half, path)


def seconds(value: float) -> str:
    """Three digits, in the unit that fits."""
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if value >= s), ("us", 1e-6))
    number = value / size
    return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"


def rows(result: dict[str, Any], mark: str = "") -> list[list[str]]:
    """What is said of a case: the cells of `COLUMNS` for each peer, the ratio between two `mark`s. A case without
    times has one row of text."""
    if result["status"] == "counted":
        return [
            [
                f"{what}: " + ", ".join(f"{name} {counts[what]}" for name, counts in result["counts"].items()),
                *["", "", ""],
                _verdict(counted[what], result["limits"].get(what), at_most=True),
            ]
            for counted in [next(iter(result["counts"].values()))]
            for what in counted
        ]
    if result["status"] != "measured":
        status = result["status"]
        return [[f"{status if status == 'skipped' else status.upper()}: {result['reason']}"]]
    first, floor, made = result["contestants"][result["first"]], result.get("floor"), []
    for peer, ratio in result["ratios"].items():
        theirs, memory = result["contestants"][peer], ""
        if None not in (first.get("peak_mib"), theirs.get("peak_mib")):
            found = ratio.get("memory", {})
            verdict = _verdict(found.get("ours_of_theirs"), found.get("target"), at_most=True)
            memory = f"{first['peak_mib']:,.0f} / {theirs['peak_mib']:,.0f}" + (f" ({verdict})" if verdict else "")
        quartiles = f"{ratio['q1']:.2f}-{ratio['q3']:.2f}" if ratio["samples"] > 1 else "one sample"
        cells = [seconds(first["seconds"]["median"]), peer, seconds(theirs["seconds"]["median"])]
        cells += [f"{mark}{ratio['median']:.2f}{mark} ({quartiles})", _verdict(ratio["median"], ratio["target"])]
        cells += [memory, f"{result['differences'][peer]['largest']:.1e}"]
        over = f"{floor['ours_over_floor']:.2f} of {seconds(floor['seconds'])}" if floor and not made else ""
        made.append([*cells, over])
    return made + [["", peer, f"left out: {reason}"] for peer, reason in result["left_out"].items()]


def _verdict(value: float, target: float | None, at_most: bool = False) -> str:
    if not target:
        return ""
    reached = value <= target if at_most else value >= target
    return f"{'at most ' if at_most else ''}{target:g} {'reached' if reached else 'missed'}"


def case_lines(name: str, result: dict[str, Any]) -> list[str]:
    """What is printed of a case."""
    return [
        _CONSOLE.format("" if index else name, *(*cells, *[""] * len(COLUMNS))[: len(COLUMNS)]).rstrip()
        for index, cells in enumerate(rows(result))
    ]


def markdown(table: Iterable[list[str]]) -> str:
    """A table with its first row as header."""
    head, *body = table
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(results: dict[str, Any]) -> str:
    """Machine and results of one file of run.py as Markdown."""
    environment, cases = results["environment"], results["cases"]
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    gemm = environment["gemm_gflop_s"]
    table = [["case", *COLUMNS]]
    for result in cases.values():
        table += [["" if index else result["title"], *cells] for index, cells in enumerate(rows(result, mark="**"))]
    return "\n".join(
        [
            f"### {environment['device_name']}",
            "",
            f"{environment['cores']} cores, {environment['threads']} threads ({environment['cpu_capability']}); "
            f"Python {environment['python']}, {packages}. Measured on this machine: matrix products at "
            f"{gemm['float32']:,.0f} GFLOP/s in float32 and {gemm['bfloat16']:,.0f} GFLOP/s in bfloat16. "
            f"Commit {', '.join(sorted({case['stamp']['commit'] for case in cases.values()}))}.",
            "",
            markdown(table),
            "",
            *(f"- *{name}*: {result['notes']}" for name, result in cases.items() if result.get("notes")),
        ]
    )


def render(template: str, files: dict[str, dict[str, Any]]) -> str:
    """The template with its places filled from the contents of benchmarks/results, by file name without ending.

    Raises ValueError for a place that the results do not fill, naming it.
    """
    runs = [content for content in files.values() if content.get("program") == "run"]

    def fill(found: re.Match) -> str:
        place = found[1].strip()
        if place == "tables":
            return "\n\n".join(section(one) for one in runs)
        name, _, rest = place.partition(":")
        if name == "table":
            name, rest = rest, "table"
        path, _, form = rest.partition(":")
        fitting = [files[name]] if name in files else [one for one in runs if one["environment"]["device"] == name]
        if len(fitting) != 1:
            raise ValueError(f"{{{{{place}}}}}: {len(fitting)} results for {name!r}; there are {', '.join(files)}.")
        value: Any = {**fitting[0], **fitting[0].get("cases", {})}
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                there = ", ".join(value) if isinstance(value, dict) else value
                raise ValueError(f"{{{{{place}}}}}: no {key!r}; there is {there}.")
            value = value[key]
        return markdown(value) if path == "table" else format(value, form)

    return re.sub(r"\{\{([^}]+)\}\}", fill, template)


def read_results(folder: Path = FOLDER / "results") -> dict[str, dict[str, Any]]:
    """Every file of results, by its name without ending."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}


def document(template: Path = TEMPLATE, folder: Path = FOLDER / "results") -> str:
    """What docs/performance.md must be. Raises ValueError where nothing was measured yet."""
    files = read_results(folder)
    if not any(content.get("program") == "run" for content in files.values()):
        raise ValueError(f"{folder}: no results yet; run python benchmarks/run.py.")
    source = "<!-- Made by benchmarks/report.py from benchmarks/performance_template.md; edit that. -->\n\n"
    return source + render(template.read_text(encoding="utf-8"), files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it is not current")
    args = parser.parse_args()
    text = document()
    if args.check:
        current = DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text
        print(f"{DOCUMENT}: {'current' if current else 'not what the results say; run python benchmarks/report.py'}")
        return 0 if current else 1
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"written: {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
