"""The figures of an `Analysis`: precision against recall, F1 against the threshold, confusion, calibration.

Each is made as an object and drawn by Agg: pyplot and the caller's backend are left alone.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.analysis import Analysis

_POINTS = 200  # of a drawn curve
# of lines: each has a contrast of 3 with white, and as much with black when the page inverts it
_COLORS = ("#1f77b4", "#c75000", "#2a8a2a", "#d62728", "#7a4fb5", "#8c564b", "#c2459c", "#6b6b6b", "#7d7d00", "#00838f")
_MOST_CLASSES = 30  # in a plot; tables have all


def precision_recall_figure(analysis: Analysis) -> tuple[Figure, str]:
    """Precision against recall of every class at IoU 0.5; the figure and its caption."""
    figure, axes = _figure()
    more = _draw_lines(axes, analysis, ("recall", "precision"), ("recall", "precision"))
    return figure, f"Precision against recall, {_iou(analysis)} 0.5.{more}"


def threshold_figure(analysis: Analysis) -> tuple[Figure, str]:
    """F1 of every class against the score threshold; the figure and its caption."""
    figure, axes = _figure()
    more = _draw_lines(axes, analysis, ("scores", "f1"), ("score threshold", "F1"))
    return figure, f"F1 against the threshold.{more}"


def confusion_figure(analysis: Analysis) -> tuple[Figure, str]:
    """Objects of each class by what was found at their place; the figure and its caption."""
    counts, names = analysis.confusion, [*analysis.class_names, "background"]
    if len(names) > _MOST_CLASSES + 1:
        keep = [*np.argsort(-counts[:-1].sum(axis=1), kind="stable")[:_MOST_CLASSES], len(names) - 1]
        counts, names = counts[np.ix_(keep, keep)], [names[k] for k in keep]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.28 * len(names) + 1.6)
    figure, axes = _figure((side, side))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_label(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set(xlabel="found", ylabel="in the data")
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=ink)
    threshold = analysis.overall.threshold or 0.0
    return figure, (
        f"Objects of each class (rows) and what was found there, scores above {threshold:.2f}, {_iou(analysis)} 0.5."
    )


def calibration_figure(analysis: Analysis) -> tuple[Figure, str]:
    """The share of detections that is right against their score; the figure and its caption."""
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    if analysis.calibration:
        score, right, count = (np.array(column) for column in zip(*analysis.calibration, strict=True))
        axes.scatter(score, right, s=20 + 180 * count / count.max(), color="#1f6fb2", alpha=0.8)
    axes.set(xlabel="mean score", ylabel="share that is right", xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
    axes.grid(alpha=0.3)
    return figure, (
        f"Calibration: on the line a score is the chance to be right; larger dots are more detections. Mean gap "
        f"{analysis.calibration_error:.3f}."
    )


# file of a run folder -> its figure
RUN_FIGURES = {"precision_recall.png": precision_recall_figure, "confusion.png": confusion_figure}


def save_figure(made: tuple[Figure, str], path: str | Path) -> str:
    """Writes a figure (the suffix is the format); returns its caption."""
    figure, caption = made
    figure.savefig(path)
    return caption


def _figure(size_in: tuple[float, float] = (4.6, 4.0)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size_in, layout="constrained", dpi=200)  # narrow: letters are read on a phone too
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _label(name: str) -> str:
    return (name if len(name) <= 18 else name[:17] + "\u2026").replace("$", r"\$")


def _iou(analysis: Analysis) -> str:
    return "mask IoU" if analysis.iou_type == "segm" else "IoU"


def _draw_lines(axes: Axes, analysis: Analysis, fields: tuple[str, str], titles: tuple[str, str]) -> str:
    """A line a class, x and y being those fields of its curve; returns what the caption must add."""
    shown = sorted(analysis.class_names, key=lambda name: -analysis.curves[name].num_targets)[:_MOST_CLASSES]
    lines = [*((name, analysis.curves[name]) for name in shown), ("all classes", analysis.overall)]
    for number, (name, curve) in enumerate(lines):
        if not len(curve.scores):
            continue
        kept = np.unique(np.linspace(0, len(curve.scores) - 1, _POINTS).astype(int))
        is_overall = curve is analysis.overall
        style = {"color": "black", "linewidth": 2.2}
        if not is_overall:
            style = {"color": _COLORS[number % len(_COLORS)], "linewidth": 1}
        label = _label(name) if len(shown) <= 10 or is_overall else None
        x, y = (getattr(curve, field)[kept] for field in fields)
        axes.plot(x, y, label=label, **style)
    axes.set(xlabel=titles[0], ylabel=titles[1], xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.figure.legend(
            fontsize=8, loc="outside lower center", ncols=3, frameon=False, handlelength=1.3, columnspacing=1
        )
    return "" if len(shown) == len(analysis.class_names) else f" The {_MOST_CLASSES} classes with most objects."
