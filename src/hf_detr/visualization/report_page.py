"""An evaluation as one self-contained HTML page: tables, curves, confusion, and the worst images. No scripts, nothing
fetched."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..evaluation.analysis import ERRORS, Analysis
from .analysis_plots import calibration_figure, confusion_figure, precision_recall_figure, threshold_figure
from .page import data_address, html_image, html_page, html_plot, html_table

_STYLE = """
.plots, .images { display: grid; gap: 1rem; align-items: start; }
.images { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
.plots .wide { grid-column: 1 / -1; }
.close { display: none; }
.images a:not(.close) { display: flex; gap: .3rem; }
.images img { flex: 1; min-width: 0; }
.images figure:target a:not(.close) { position: fixed; inset: 0; z-index: 1; background: #000d; }
.images figure:target img { min-height: 0; object-fit: contain; }
@media (max-width: 30rem) { .images a:not(.close) { flex-direction: column; } }
@media (orientation: portrait) { .images figure:target a:not(.close) { flex-direction: column; } }
.images figure:target .close { display: block; position: fixed; inset: 0; z-index: 2; }
"""


def write_report(
    analysis: Analysis, path: str | Path, title: str, images: Sequence[tuple[str | Image.Image, ...]] = ()
) -> None:
    """Writes the page of an analysis to `path`.

    `images`: (caption, drawing, ...) of the images to show, whose drawings are side by side and which a click
    enlarges. Every text is escaped.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _summary(analysis),
        "<p>AP and every IoU here are those of masks.</p>" if analysis.iou_type == "segm" else "",
        "<h2>Classes</h2>", _classes(analysis),
        '<h2>Precision, recall and threshold</h2><div class="plots">',
        _plot(precision_recall_figure(analysis)), _plot(threshold_figure(analysis)), "</div>",
        "<h2>Errors</h2>", _errors(analysis),
        '<h2>Confusion and calibration</h2><div class="plots">',
        _plot(confusion_figure(analysis)), _plot(calibration_figure(analysis)), "</div>",
        '<h2 id="images">Images</h2>', _images(images, analysis.iou_type),
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


def _plot(made: tuple[Figure, str]) -> str:
    figure, caption = made
    figure.canvas.draw()
    width_px = round(72 * figure.get_figwidth())  # so that a point of its letters is a pixel at least
    return html_plot(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())), caption, width_px)


def _images(images: Sequence[tuple[str | Image.Image, ...]], iou_type: str) -> str:
    if not images:
        return "<p>No image with a wrong or a missed object.</p>"
    cells = []
    for number, (caption, *drawings) in enumerate(images):
        shown = "".join(html_image(data_address(drawing.convert("RGB")), caption) for drawing in drawings)
        cells.append(
            f'<figure id="image{number}"><a href="#image{number}">{shown}</a>'
            f'<a class="close" href="#images" aria-label="close"></a><figcaption>{html.escape(caption)}</figcaption>'
            "</figure>"
        )
    words = "detections in orange, annotations dashed in blue"
    if iou_type == "segm":
        words = "annotations, and beside or below them what was found"
    words = f"Most errors first: {words}. A click enlarges, a click closes."
    kind = "images pairs" if len(images[0]) > 2 else "images"
    return f'<p>{words}</p><div class="{kind}">{"".join(cells)}</div>'


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
