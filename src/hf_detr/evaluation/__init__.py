"""COCO average precision, streamed over batches and processes."""

from .coco import CocoEvaluator as CocoEvaluator
from .evaluator import evaluate_detections as evaluate_detections
