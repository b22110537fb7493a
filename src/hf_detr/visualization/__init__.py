"""Drawings of what goes in and what comes out: boxes, masks and segments on images, curves of a training."""

from .curves import plot_curves as plot_curves
from .detections import class_color as class_color
from .detections import draw_detections as draw_detections
from .detections import save_detections_grid as save_detections_grid
from .masks import draw_masks as draw_masks
from .masks import draw_panoptic as draw_panoptic
from .masks import save_masks_grid as save_masks_grid
