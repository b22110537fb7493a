"""docs/performance.md from benchmarks/results/*.json and the text in performance_template.md.

    python benchmarks/report.py            # writes docs/performance.md
    python benchmarks/report.py --check    # exit code 1 if it is not what the results say

The template is Markdown with two kinds of places to fill, so that no number is typed by hand:

    {{tables}}                                             machine and table of every results file
    {{growth}}                                             how time and memory grow, of every file of growth.py
    {{cpu:inference_fp32.ratios.stock.median:.2f}}         one number: device (of run.py) or name of a file, path in
                                                           its JSON, format
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TEMPLATE = FOLDER / "performance_template.md"
DOCUMENT = FOLDER.parent / "docs" / "performance.md"

_COLUMNS = "{:<26}{:>9}  {:<15}{:>9}  {:>7}  {:<13}{:<15}{:<16}{}"
HEADER = _COLUMNS.format(
    "case", "ours", "peer", "peer's", "ratio", "quartiles", "target", "MiB ours/peer", "difference"
).rstrip()


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
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size or unit == "us":
            number = value / size
            return f"{number:.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"
    raise AssertionError("unreachable")


def case_lines(name: str, result: dict[str, Any]) -> list[str]:
    """What is printed of a case: a line for each peer."""
    status = result["status"]
    if status in ("skipped", "failed", "error"):
        return [f"{name:<26}{status.upper() if status != 'skipped' else status}: {result['reason']}"]
    if status == "counted":
        return [
            f"{name:<26}{what}: "
            + ", ".join(f"{contestant} {found[what]}" for contestant, found in result["counts"].items())
            + (f" (at most {result['limits'][what]} in ours)" if what in result["limits"] else "")
            for what in next(iter(result["counts"].values()))
        ]
    lines = []
    for row in _rows(result):
        cells = [row["ours"], row["peer"], row["theirs"], row["ratio"], row["quartiles"], row["target"]]
        lines.append(_COLUMNS.format("" if lines else name, *cells, row["memory"], row["difference"]).rstrip())
    if "floor" in result:
        floor = result["floor"]
        lines.append(
            f"{'':<26}{floor['gflop']:,.0f} GFLOP in {floor['dtype']}: floor {seconds(floor['seconds'])}, ours takes "
            f"{floor['ours_over_floor']:.2f} times that"
        )
    lines += [f"{'':<26}{peer} left out: {reason}" for peer, reason in result["left_out"].items()]
    return lines


def _rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """One for each peer, as text."""
    first = result["contestants"][result["first"]]
    rows = []
    for peer, ratio in result["ratios"].items():
        theirs = result["contestants"][peer]
        target = ""
        if ratio["target"]:
            reached = "reached" if ratio["median"] >= ratio["target"] else "missed"
            target = f"{ratio['target']:g} {reached}"
        memory = ""
        if first.get("peak_mib") is not None and theirs.get("peak_mib") is not None:
            memory = f"{first['peak_mib']:,.0f} / {theirs['peak_mib']:,.0f}"
            limit = ratio.get("memory", {}).get("target")
            if limit:
                reached = "reached" if ratio["memory"]["ours_of_theirs"] <= limit else "missed"
                memory += f" ({limit:g} {reached})"
        rows.append(
            {
                "ours": seconds(first["seconds"]["median"]),
                "peer": peer,
                "theirs": seconds(theirs["seconds"]["median"]),
                "ratio": f"{ratio['median']:.2f}",
                "quartiles": f"{ratio['q1']:.2f}-{ratio['q3']:.2f}" if ratio["samples"] > 1 else "one sample",
                "target": target,
                "memory": memory,
                "difference": f"{result['differences'][peer]['largest']:.1e}",
            }
        )
    return rows


def table(results: dict[str, Any]) -> str:
    """Machine and results as Markdown."""
    environment = results["environment"]
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    gemm = environment["gemm_gflop_s"]
    commits = sorted({case["stamp"]["commit"] for case in results["cases"].values()})
    lines = [
        f"### {environment['device_name']}",
        "",
        f"{environment['cores']} cores, {environment['threads']} threads ({environment['cpu_capability']}); "
        f"Python {environment['python']}, {packages}. Measured on this machine: matrix products at "
        f"{gemm['float32']:,.0f} GFLOP/s in float32 and {gemm['bfloat16']:,.0f} GFLOP/s in bfloat16. "
        f"Commit {', '.join(commits)}.",
        "",
        "| case | ours | peer | peer's | ratio (quartiles) | target | peak MiB, ours / peer | largest difference | "
        "ours over floor |",
        "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    notes = []
    for name, result in results["cases"].items():
        title = result["title"]
        if result["status"] == "measured":
            floor = result.get("floor")
            over = f"{floor['ours_over_floor']:.2f} of {seconds(floor['seconds'])}" if floor else ""
            for index, row in enumerate(_rows(result)):
                lines.append(
                    f"| {title if index == 0 else ''} | {row['ours']} | {row['peer']} | {row['theirs']} | "
                    f"**{row['ratio']}** ({row['quartiles']}) | {row['target']} | {row['memory']} | "
                    f"{row['difference']} | {over if index == 0 else ''} |"
                )
            for peer, reason in result["left_out"].items():
                lines.append(f"| {'' if result['ratios'] else title} | | {peer} | left out: {reason} | | | | | |")
        elif result["status"] == "counted":
            for what in next(iter(result["counts"].values())):
                found = ", ".join(f"{contestant} {counts[what]}" for contestant, counts in result["counts"].items())
                limit = result["limits"].get(what)
                lines.append(f"| {title} | {found} | | | | {'' if limit is None else f'at most {limit}'} | | | |")
        else:
            lines.append(f"| {title} | {result['status']}: {result['reason']} | | | | | | | |")
        if result.get("notes"):
            notes.append(f"- *{name}*: {result['notes']}")
    return "\n".join([*lines, "", *notes])


def growth_table(results: dict[str, Any]) -> str:
    """The slopes that growth.py found, as Markdown."""
    package = {"ours": "this package"}.get(results["package"], results["package"])
    lines = [
        f"{results['environment']['device_name']}, {package}, commit {results['stamp']['commit']}:",
        "",
        "| work | against | from | to | slope of time | slope of the arithmetic | slope of memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in results["growth"]:
        before, last = line["points"][-2:]
        slopes = line["slopes"]
        ends = [f"{point['size']}: {seconds(point['seconds']['median'])}" for point in (before, last)]
        lines.append(
            f"| {line['work']} | {line['against']} | {ends[0]} | {ends[1]} | {slopes['time']:.2f} | "
            f"{slopes['arithmetic']:.2f} | {slopes['memory']:.2f} |"
        )
    return "\n".join(lines)


def each_change_table(results: dict[str, Any]) -> str:
    """What each_change.py found, as Markdown."""
    lines = [
        f"{results['environment']['device_name']}, commit {results['stamp']['commit']}:",
        "",
        "| call | as it is | without | times as long (quartiles) |",
        "| --- | ---: | --- | ---: |",
    ]
    for case, rows in results["cases"].items():
        call, mine = case, seconds(rows["as it is"]["median"])
        for name, row in rows.items():
            if name != "as it is":
                ratio = row["ratio"]
                lines.append(
                    f"| {call} | {mine} | {name} | **{ratio['median']:.2f}** ({ratio['q1']:.2f}-{ratio['q3']:.2f}) |"
                )
                call = mine = ""
    return "\n".join(lines)


def render(template: str, files: dict[str, dict[str, Any]]) -> str:
    """The template with its places filled from the contents of benchmarks/results, by file name without ending.

    Raises ValueError for a place that the results do not fill, naming it.
    """
    by_program = {
        program: [content for content in files.values() if content.get("program") == program]
        for program in ("run", "growth", "each_change")
    }

    def fill(found: re.Match) -> str:
        place = found[1].strip()
        if place == "tables":
            return "\n\n".join(table(one) for one in by_program["run"])
        if place == "growth":
            return "\n\n".join(growth_table(one) for one in by_program["growth"]) or "Not measured yet."
        if place == "each_change":
            return "\n\n".join(each_change_table(one) for one in by_program["each_change"]) or "Not measured yet."
        name, _, rest = place.partition(":")
        path, _, form = rest.partition(":")
        fitting = [files[name]] if name in files else []
        fitting = fitting or [one for one in by_program["run"] if one["environment"]["device"] == name]
        if len(fitting) != 1:
            raise ValueError(f"{{{{{place}}}}}: {len(fitting)} results for {name!r}; there are {', '.join(files)}.")
        value: Any = {**fitting[0], **fitting[0].get("cases", {})}
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(
                    f"{{{{{place}}}}}: no {key!r}; there is {', '.join(value) if isinstance(value, dict) else value}."
                )
            value = value[key]
        return format(value, form)

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
    try:
        text = document()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        current = DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text
        print(f"{DOCUMENT}: {'current' if current else 'not what the results say; run python benchmarks/report.py'}")
        return 0 if current else 1
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"written: {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
