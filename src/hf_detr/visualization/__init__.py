"""Drawings of what goes in and what comes out: boxes on images, curves of a training."""

from .curves import plot_curves as plot_curves
from .detections import class_color as class_color
from .detections import draw_detections as draw_detections
from .detections import save_detections_grid as save_detections_grid
