"""The table and the plot of a time-to-AP file."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import mean


def table(recorded: dict, names: Iterable[str] | None = None) -> str:
    """AP at a quarter, a half and all of the time, mean (least to most) over the seeds, and what a step costs; of the
    contestants `names`, or all. Where stock has not run, times are those to the best of the paper's, if that has."""
    minutes = recorded["minutes"]
    head = ["contestant", "seeds", "ms a step", "images", f"AP at {minutes / 4:g} min", f"{minutes / 2:g} min"]
    stock = {name: seeds for name, seeds in recorded["runs"].items() if name.startswith("stock")}
    reference = "stock" if stock else "paper"
    stock = stock or {name: seeds for name, seeds in recorded["runs"].items() if name.startswith("paper")}
    head += [f"{minutes:g} min", "AP50", *([f"to {reference}'s best"] if stock else [])]
    examples = {name: seeds for name, seeds in recorded["runs"].items() if name.startswith("stock-example")}
    if examples:
        head.append("to its example's best")
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name in recorded["runs"] if names is None else names:
        runs = list(recorded["runs"][name].values())
        cells = [name, str(len(runs)), f"{mean(run['ms_per_step'] for run in runs):.0f}"]
        cells.append(f"{mean(run['images'] for run in runs):,.0f}")
        cells += [_spread([_at(run, share * 60 * minutes, "map") for run in runs]) for share in (0.25, 0.5, 1)]
        cells.append(_spread([run["curve"][-1]["map_50"] for run in runs]))
        cells += [_reached(runs, _best(some), minutes) for some in (stock, examples) if some]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _best(contestants: dict[str, dict]) -> float | None:
    """The best mean AP that one of them ends with."""
    return max(
        (mean(run["curve"][-1]["map"] for run in seeds.values()) for seeds in contestants.values()), default=None
    )


def _reached(runs: list[dict], best: float | None, minutes: float) -> str:
    """After what share of the time the mean curve reaches `best`, as on straight lines between evaluations; or "no"."""
    if best is None:
        return ""
    points = [(0.0, 0.0)]
    for index in range(len(runs[0]["curve"])):
        seconds = mean(run["curve"][index]["seconds"] for run in runs)
        points.append((seconds / (60 * minutes), mean(run["curve"][index]["map"] for run in runs)))
    for (before, low), (after, high) in pairwise(points):
        if high >= best:
            return f"{before + (after - before) * (best - low) / max(high - low, 1e-9):.2f}"
    return "no"


def _at(run: dict, seconds: float, name: str) -> float | None:
    """At the first evaluation that is not before `seconds`; None where the run has ended by then."""
    return next((point[name] for point in run["curve"] if point["seconds"] > 0.999 * seconds), None)


def _spread(values: list[float | None]) -> str:
    if None in values:
        return ""
    middle = f"{100 * mean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def plot(recorded: dict, path: Path, names: Iterable[str] | None = None) -> None:
    """AP against minutes and against images: a line for the mean over the seeds, a band from least to most; of the
    contestants `names`, or all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for number, name in enumerate(recorded["runs"] if names is None else names):
        runs = list(recorded["runs"][name].values())
        ap = list(zip(*[[100 * point["map"] for point in run["curve"]] for run in runs], strict=True))
        for axis, value in zip(axes, ("minutes", "images"), strict=True):
            along = [
                [p["seconds"] / 60 if value == "minutes" else p["steps"] * run["images"] / run["curve"][-1]["steps"]
                 for p in run["curve"]] for run in runs
            ]  # fmt: skip
            x = [mean(column) for column in zip(*along, strict=True)]
            style = "--" if number > 9 else "-"  # there are ten colours
            (line,) = axis.plot(x, [mean(column) for column in ap], style, marker="o", markersize=3, label=name)
            axis.fill_between(x, [min(c) for c in ap], [max(c) for c in ap], alpha=0.15, color=line.get_color())
    axes[0].set(xlabel="minutes of training", ylabel="COCO AP on unseen images", title=recorded["case"])
    axes[1].set(xlabel="images seen")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
