"""What each object query has learnt: where its boxes lie over many images, and how large they are (paper, figure 7)."""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# name -> colour of Okabe and Ito, for every kind of colour vision
_SIZES = {"small": "#009e73", "wide": "#d55e00", "tall": "#0072b2"}
_SMALL = 1 / 64  # of the image's area: an eighth of each side


def draw_queries(boxes_cxcywh: Tensor, scores: Tensor | None = None, most: int = 20, columns: int = 5) -> Image.Image:
    """One panel a query with the centre of its box in every image: small boxes, larger ones that are wide, and tall.

    `boxes_cxcywh`: (N, Q, 4) the boxes of N images, all of them, in [0, 1] of the image. `scores`: (N, Q) of their best
    class; the `most` queries with the greatest mean are shown then, otherwise the first. Raises ValueError without an
    image or a query.
    """
    if boxes_cxcywh.ndim != 3 or not boxes_cxcywh.shape[0] or not boxes_cxcywh.shape[1]:
        raise ValueError(f"expected boxes (images, queries, 4), got {tuple(boxes_cxcywh.shape)}; give at least one.")
    order = range(boxes_cxcywh.shape[1]) if scores is None else (-scores.mean(0)).argsort(stable=True).tolist()
    shown = list(order)[:most]
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.5), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, query in zip(panels, shown, strict=False):
        kinds = box_kinds(boxes_cxcywh[:, query])
        panel.set_axis_on()
        panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        panel.set_title(f"query {query}", fontsize=9)
        for kind, (name, color) in enumerate(_SIZES.items()):
            x, y = boxes_cxcywh[:, query][kinds == kind, :2].T.tolist()
            panel.scatter(x, y, s=9, color=color, alpha=0.6, linewidths=0, label=name)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=10,
        markerscale=2,
        frameon=False,
    )
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def box_kinds(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) in [0, 1] of the image -> 0 for small boxes (a 64th of its area), 1 for wide ones, 2 for tall ones."""
    width, height = boxes_cxcywh[..., 2], boxes_cxcywh[..., 3]
    return (1 + (height > width).long()).where(width * height >= _SMALL, 0)
