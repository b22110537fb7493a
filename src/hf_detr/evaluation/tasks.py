"""What a model is trained to find, and by which number it is judged.

detection  boxes: COCO AP of boxes
instance   boxes and a mask each: COCO AP of masks
panoptic   segments that share out the pixels, things and stuff: panoptic quality
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..data.schema import is_panoptic
from .coco import CocoEvaluator
from .panoptic import PanopticEvaluator

TASKS = ("detection", "instance", "panoptic")
# task -> the number that the best checkpoint is chosen by, and what people call it
BEST_BY = {"detection": "map", "instance": "map", "panoptic": "pq"}
IN_WORDS = {"detection": "COCO AP", "instance": "mask AP", "panoptic": "panoptic quality"}


def task_of(model: Any, dataset: Any = None) -> str:
    """The task that `model` is evaluated by on `dataset`.

    A model with masks: "panoptic" where the data says which objects are stuff or, with data of unknown columns, where
    the model's configuration does; else "instance".
    """
    if not has_mask_head(model):
        return "detection"
    says = is_panoptic(dataset)
    if says is None:
        says = getattr(model.config, "label_ids_to_fuse", None) is not None
    return "panoptic" if says else "instance"


def has_mask_head(model: Any) -> bool:
    """Whether it is a `DetrForSegmentation`, perhaps with adapters."""
    return hasattr(model, "mask_head")


def evaluator_of(
    task: str,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
    score_threshold: float = 0.0,
    stuff: Collection[int] | None = None,
) -> CocoEvaluator | PanopticEvaluator:
    """The evaluator of a task; `max_dets` and `score_threshold` are for AP, `stuff` for panoptic quality.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is none of {', '.join(map(repr, TASKS))}.")
    if task == "panoptic":
        return PanopticEvaluator(class_names, stuff)
    iou_type = "bbox" if task == "detection" else "segm"
    return CocoEvaluator(class_names, max_dets, iou_type=iou_type, score_threshold=score_threshold)
