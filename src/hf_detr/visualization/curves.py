"""Curves of a training: losses, their parts, average precision and learning rates, in one image.

Figures are made as objects and drawn by Agg: pyplot, its windows and the caller's backend are left alone.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PREFIXES = ("eval_", "val_", "test_")
_AP = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "map_small": "AP small", "map_medium": "AP medium"}
_AP |= {"map_large": "AP large"}
_PQ = {"pq": "PQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff", "sq": "SQ", "rq": "RQ"}
_MEASURED = _AP | _PQ
_RATE = "learning_rate"
_SMOOTH_FROM = 150  # points; a longer curve is shown as its running mean over a fiftieth of it, with the points behind

Curve = list[tuple[float, float]]  # (x, y), in the order logged; y may be NaN


def plot_curves(history: Sequence[Mapping], path: str | Path) -> None:
    """Draw what a training logged and write it to `path` (its suffix is the format: .png, .svg, .pdf).

    `history`: one dict a logging step, as `Trainer.state.log_history` has them: `loss`, `loss_*` parts, `map*`, `pq*`,
    `learning_rate` and `learning_rate_*`, those of an evaluation with `eval_` before them, and `epoch` or `step`. Other
    keys are passed over, as are the losses of single decoder layers (`loss_ce_0`). Where an entry has neither epoch nor
    step, its position counts. AP of -1 (undefined) and values that are not finite leave a gap. Learning rates are steps
    that end where they were logged; they and the parts of the loss have a logarithmic scale, where they are above 0.
    Raises ValueError if there is nothing to draw.
    """
    x_name, entries = _with_x(history)
    losses = _curves(entries, lambda name: name == "loss")
    parts = _curves(entries, lambda name: re.fullmatch(r"loss_\w*[a-z]", name) is not None)
    precision = _curves(entries, lambda name: name in _AP)
    quality = _curves(entries, lambda name: name in _PQ)
    rates = _curves(entries, lambda name: name.startswith(_RATE))
    panels = [
        (curves, title, label)
        for curves, title, label in (
            (losses, "Loss", "loss"),
            (parts, "Parts of the loss", "part of the loss"),
            (precision, "Average precision", "AP"),
            (quality, "Panoptic quality", "PQ"),
            (rates, "Learning rate", "learning rate"),
        )
        if curves
    ]
    if not panels:
        raise ValueError(
            f"history of {len(history)} entries holds no loss, loss_*, map* or learning_rate to draw; pass the list of "
            "dicts that the training logged, e.g. trainer.state.log_history."
        )

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.0 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    end = max(x for curves, _, _ in panels for points in curves.values() for x, _ in points)
    for axes, (curves, title, label) in zip(grid, panels, strict=False):
        _panel(axes, curves, title, label, x_name)
        heights = [y for points in curves.values() for _, y in points if math.isfinite(y)]
        if label in ("AP", "PQ"):
            axes.set_ylim(0, min(1.02, max(0.1, 1.15 * max(heights))))
        elif label in ("part of the loss", "learning rate") and max(heights) > 0:
            axes.set_yscale("log", nonpositive="mask")
        elif min(heights) >= 0:
            axes.set_ylim(bottom=0)
        if end > 0:  # one range for all, from the beginning of the training
            axes.set_xlim(-0.02 * end, 1.02 * end)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _with_x(history: Sequence[Mapping]) -> tuple[str, list[tuple[float, Mapping]]]:
    """The entries that carry a curve with their location on the x axis, and what that axis is called."""
    # the Trainer's last entry sums up the run (train_loss, train_runtime): no point of any curve
    entries = [entry for entry in history if "train_runtime" not in entry]
    for name in ("epoch", "step"):
        if entries and all(isinstance(entry.get(name), int | float) for entry in entries):
            return name, [(float(entry[name]), entry) for entry in entries]
    return "entry", [(float(i), entry) for i, entry in enumerate(entries)]


def _curves(entries: list[tuple[float, Mapping]], wanted) -> dict[tuple[str, bool], Curve]:
    """(name, is of an evaluation) -> points, for the names that `wanted` accepts without their prefix."""
    curves: dict[tuple[str, bool], Curve] = {}
    for x, entry in entries:
        for key, value in entry.items():
            prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
            name = key.removeprefix(prefix).removeprefix("train_")
            if not wanted(name) or isinstance(value, bool) or not isinstance(value, int | float | np.number):
                continue
            value = float(value)
            undefined = not math.isfinite(value) or (name in _MEASURED and value < 0)
            of_evaluation = bool(prefix) or name in _MEASURED
            curves.setdefault((name, of_evaluation), []).append((x, math.nan if undefined else value))
    return {key: points for key, points in curves.items() if any(math.isfinite(y) for _, y in points)}


def _panel(axes: Axes, curves: dict[tuple[str, bool], Curve], title: str, label: str, x_name: str) -> None:
    order = list(_MEASURED)
    names = sorted({name for name, _ in curves}, key=lambda name: (order.index(name) if name in order else 0, name))
    for (name, of_evaluation), points in sorted(curves.items(), key=lambda item: (names.index(item[0][0]), item[0][1])):
        x, y = np.array(points).T
        # one colour a name; of a loss the training is solid, the evaluation dashed
        color = f"C{names.index(name) if len(names) > 1 else int(of_evaluation and name not in order)}"
        style = {"color": color, "linewidth": 2.2 if name in ("map", "pq") else 1.6}
        style["linestyle"] = "--" if of_evaluation and name not in order else "-"
        if name.startswith(_RATE):
            # a rate is logged after the steps it was used for, and the first of them is the run's
            x, y, style["drawstyle"] = np.insert(x, 0, min(0.0, x[0])), np.insert(y, 0, y[0]), "steps-pre"
        else:
            style["marker"], style["markersize"] = ("o" if len(x) <= 40 else None), 3.5
            style["markerfacecolor"] = "white" if style["linestyle"] == "--" else color
            if len(x) >= _SMOOTH_FROM and np.isfinite(y).all():
                window = len(x) // 50
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
                x, y = x[window - 1 :], np.convolve(y, np.full(window, 1 / window), mode="valid")
        axes.plot(x, y, label=_legend(name, of_evaluation), **style)
    if label in ("AP", "PQ"):
        main = "map" if label == "AP" else "pq"
        points = [(y, x) for x, y in curves.get((main, True), []) if math.isfinite(y)]
        if points:
            best, best_x = max(points, key=lambda point: point[0])  # the first of equals
            title += f" (best {label} {best:.3f} at {x_name} {best_x:.4g})"
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_name)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:  # beside the axes: inside it would lie on a line sooner or later
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _legend(name: str, of_evaluation: bool) -> str:
    if name in _MEASURED:
        return _MEASURED[name]
    if name.startswith(_RATE):
        return name.removeprefix(_RATE).strip("_").replace("_", " ") or "others"
    return name.removeprefix("loss_") + ("\n(evaluation)" if of_evaluation else "")


def plot_precision(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path) -> None:
    """Draw precision against recall of several models, {name: (recall, precision)}, into `path`."""
    figure = Figure(figsize=(7, 5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (recall, precision) in curves.items():
        label = name if len(name) <= 80 else "\u2026" + name[-79:]  # of a path the end tells
        axes.plot(recall, precision, label=label.replace("$", r"\$"))
    axes.set(xlabel="recall", ylabel="precision (all classes, IoU 0.5)", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(path)
