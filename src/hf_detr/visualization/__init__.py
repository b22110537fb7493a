"""Drawings of what goes in and what comes out: boxes, masks and segments on images, curves of a training; and of what
happens between: attention, the answers of every layer, what each query has learnt."""

from .attention import record_attention as record_attention
from .curves import plot_curves as plot_curves
from .detections import class_color as class_color
from .detections import draw_detections as draw_detections
from .detections import save_detections_grid as save_detections_grid
from .explanation import explanation_page as explanation_page
from .heat import draw_attention as draw_attention
from .masks import draw_masks as draw_masks
from .masks import draw_panoptic as draw_panoptic
from .masks import save_masks_grid as save_masks_grid
from .query_statistics import draw_queries as draw_queries
