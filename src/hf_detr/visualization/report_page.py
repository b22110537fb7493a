"""An evaluation as one self-contained HTML page: tables, curves, confusion, and the worst images. No scripts, nothing
fetched."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..evaluation.analysis import ERRORS, Analysis
from .page import data_address, html_image, html_page, html_table

_POINTS = 200  # of a drawn curve
_MOST_CLASSES = 30  # in a plot; tables have all
_STYLE = """
.plots, .images { display: grid; gap: 1rem; align-items: start; }
.images { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.plots img { background: #fff; }
.close { display: none; }
.images figure:target img { position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh; object-fit: contain;
  background: #000d; }
.images figure:target .close { display: block; position: fixed; inset: 0; z-index: 2; }
"""


def write_report(
    analysis: Analysis, path: str | Path, title: str, images: Sequence[tuple[str, Image.Image]] = ()
) -> None:
    """Writes the page of an analysis to `path`.

    `images`: (caption, drawing) of the images to show, which a click enlarges. Every text is escaped.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _summary(analysis),
        "<h2>Classes</h2>", _classes(analysis),
        '<h2>Precision, recall and threshold</h2><div class="plots">', *_curve_plots(analysis), "</div>",
        "<h2>Errors</h2>", _errors(analysis),
        '<h2>Confusion and calibration</h2><div class="plots">', _confusion(analysis), _calibration(analysis), "</div>",
        '<h2 id="images">Images</h2>', _images(images),
        _suspects(analysis),
    ]  # fmt: skip
    page = html_page(title, "\n".join(parts), _STYLE)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _number(value: float | None) -> str:
    """Three digits; a dash where there is nothing to measure."""
    return "-" if value is None or value < 0 else f"{value:.3f}"


def _summary(analysis: Analysis) -> str:
    m = analysis.metrics
    head = ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "best F1", "at score", "images", "objects"]
    row = [_number(m[name]) for name in ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")]
    row += [_number(analysis.overall.best_f1), _number(analysis.overall.threshold)]
    row += [f"{m['num_images']:,}", f"{m['num_targets']:,}"]
    by_objects = [
        [f"{name} an image", _number(ap), f"{count:,}"] for name, (ap, count) in analysis.ap_by_objects.items()
    ]
    return html_table(head, [row]) + "<p></p>" + html_table(["objects", "AP", "images"], by_objects)


def _classes(analysis: Analysis) -> str:
    rows = []
    for name in analysis.class_names:
        metrics, curve = analysis.metrics["per_class"][name], analysis.curves[name]
        rows.append([name, *(_number(metrics[key]) for key in ("map", "map_50", "map_75")), _number(curve.best_f1),
                     _number(curve.threshold), f"{curve.num_targets:,}", f"{metrics['num_detections']:,}"])  # fmt: skip
    head = ["class", "AP", "AP50", "AP75", "best F1", "at score", "objects", "detections"]
    return html_table(head, rows) + (
        "<p>Best F1 is at an IoU of 0.5; scores above the number beside it are kept for it. Chosen on these images, so "
        "on others it will be a little worse.</p>"
    )


def _errors(analysis: Analysis) -> str:
    rows = [
        [words, f"{analysis.error_counts[name]:,}", _number(analysis.error_ap[name])] for name, words in ERRORS.items()
    ]
    return html_table(["error (TIDE)", "how many", "AP50 without it"], rows) + (
        "<p>Counted over detections of every score. The last column is what AP50 would gain if there were no error of "
        "this kind: work on the largest.</p>"
    )


def _plot(draw, caption: str, size_in: tuple[float, float] = (5.5, 4.0)) -> str:
    figure = Figure(figsize=size_in, layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    figure.canvas.draw()
    address = data_address(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), "png")
    return f"<figure>{html_image(address, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _curve_plots(analysis: Analysis) -> list[str]:
    shown = sorted(analysis.class_names, key=lambda name: -analysis.curves[name].num_targets)[:_MOST_CLASSES]
    curves = [(name, analysis.curves[name]) for name in shown]

    def lines(axes, x_of, y_of, x_name: str, y_name: str) -> None:
        for name, curve in [*curves, ("all classes", analysis.overall)]:
            if not len(curve.scores):
                continue
            kept = np.unique(np.linspace(0, len(curve.scores) - 1, _POINTS).astype(int))
            style = {"color": "black", "linewidth": 2.2} if curve is analysis.overall else {"linewidth": 1}
            label = name.replace("$", r"\$") if len(curves) <= 10 or curve is analysis.overall else None
            axes.plot(x_of(curve)[kept], y_of(curve)[kept], label=label, **style)
        axes.set(xlabel=x_name, ylabel=y_name, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.figure.legend(fontsize=7, loc="outside right upper")

    def of(name: str):
        return lambda curve: getattr(curve, name)

    more = "" if len(curves) == len(analysis.class_names) else f" The {_MOST_CLASSES} classes with most objects."
    return [
        _plot(lambda axes: lines(axes, of("recall"), of("precision"), "recall", "precision"),
              f"Precision against recall, IoU 0.5.{more}"),
        _plot(lambda axes: lines(axes, of("scores"), of("f1"), "score threshold", "F1"),
              f"F1 against the threshold.{more}"),
    ]  # fmt: skip


def _confusion(analysis: Analysis) -> str:
    counts, names = analysis.confusion, [*analysis.class_names, "background"]
    if len(names) > _MOST_CLASSES + 1:
        keep = [*np.argsort(-counts[:-1].sum(axis=1), kind="stable")[:_MOST_CLASSES], len(names) - 1]
        counts, names = counts[np.ix_(keep, keep)], [names[k] for k in keep]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.32 * len(names) + 1.8)

    def draw(axes) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels = [(name if len(name) <= 18 else name[:17] + "\u2026").replace("$", r"\$") for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), labels, fontsize=8)
        axes.set(xlabel="found", ylabel="in the data")
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=ink)

    threshold = analysis.overall.threshold or 0.0
    caption = f"Objects of each class (rows) and what was found there, scores above {threshold:.2f}, IoU 0.5."
    return _plot(draw, caption, (side + 0.6, side))


def _calibration(analysis: Analysis) -> str:
    def draw(axes) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        if analysis.calibration:
            score, right, count = (np.array(column) for column in zip(*analysis.calibration, strict=True))
            axes.scatter(score, right, s=20 + 180 * count / count.max(), color="#1f6fb2", alpha=0.8)
        axes.set(xlabel="mean score", ylabel="share that is right", xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        axes.grid(alpha=0.3)

    caption = (
        f"Calibration: on the line a score is the chance to be right; larger dots are more detections. Mean gap "
        f"{analysis.calibration_error:.3f}."
    )
    return _plot(draw, caption)


def _images(images: Sequence[tuple[str, Image.Image]]) -> str:
    if not images:
        return "<p>No image with a wrong or a missed object.</p>"
    cells = []
    for number, (caption, image) in enumerate(images):
        shown = html_image(data_address(image.convert("RGB")), caption)
        cells.append(
            f'<figure id="image{number}"><a href="#image{number}">{shown}</a>'
            f'<a class="close" href="#images" aria-label="close"></a><figcaption>{html.escape(caption)}</figcaption>'
            "</figure>"
        )
    words = "Most errors first: detections in orange, annotations dashed in blue. A click enlarges, a click closes."
    return f'<p>{words}</p><div class="images">{"".join(cells)}</div>'


def _suspects(analysis: Analysis) -> str:
    if not analysis.label_suspects:
        return ""
    rows = [
        [str(image_id), truth, found, _number(score)] for image_id, truth, found, score in analysis.label_suspects[:50]
    ]
    return (
        "<h2>Annotations to look at</h2><p>A confident detection lies on an object of another class: one of the two is "
        "wrong.</p>" + html_table(["image", "annotated", "detected", "score"], rows)
    )
