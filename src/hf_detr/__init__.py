"""hf_detr: DETR (End-to-End Object Detection with Transformers, ECCV 2020) for people who fine-tune.

Importing this package imports nothing else: each public name is fetched from its module when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> the module it lives in
_HOME = {
    "AspectRatioBatchSampler": "data.sampler",
    "CocoEvaluator": "evaluation",
    "PanopticEvaluator": "evaluation",
    "SemanticEvaluator": "evaluation",
    "draw_masks": "visualization",
    "draw_panoptic": "visualization",
    "DetectionCollator": "data.collator",
    "DetectionTransform": "data.transform",
    "DetrConfig": "configuration_detr",
    "DetrForObjectDetection": "modeling_detr",
    "DetrForSegmentation": "modeling_detr_segmentation",
    "DetrImageProcessor": "image_processing_detr",
    "CocoMetric": "training",
    "DetrModel": "modeling_detr",
    "DetrTrainer": "training",
    "DetrTrainingArguments": "training",
    "DetrModelOutput": "modeling_detr",
    "DetrObjectDetectionOutput": "modeling_detr",
    "DetrPreTrainedModel": "modeling_detr",
    "DetrSegmentationOutput": "modeling_detr_segmentation",
    "check_dataset": "data.checks",
    "digit_scenes": "data.synthetic.digits",
    "draw_detections": "visualization",
    "evaluate_model": "training",
    "imagenet_start": "training",
    "load_detection_dataset": "data.loading",
    "parameter_groups": "training",
    "shape_scenes": "data.synthetic.shapes",
    "tiny_checkpoint": "checkpoints.tiny",
    "transform_dataset": "data.transform",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .checkpoints.tiny import tiny_checkpoint as tiny_checkpoint
    from .configuration_detr import DetrConfig as DetrConfig
    from .data.checks import check_dataset as check_dataset
    from .data.collator import DetectionCollator as DetectionCollator
    from .data.loading import load_detection_dataset as load_detection_dataset
    from .data.sampler import AspectRatioBatchSampler as AspectRatioBatchSampler
    from .data.synthetic.digits import digit_scenes as digit_scenes
    from .data.synthetic.shapes import shape_scenes as shape_scenes
    from .data.transform import DetectionTransform as DetectionTransform
    from .data.transform import transform_dataset as transform_dataset
    from .evaluation import CocoEvaluator as CocoEvaluator
    from .evaluation import PanopticEvaluator as PanopticEvaluator
    from .evaluation import SemanticEvaluator as SemanticEvaluator
    from .image_processing_detr import DetrImageProcessor as DetrImageProcessor
    from .modeling_detr import DetrForObjectDetection as DetrForObjectDetection
    from .modeling_detr import DetrModel as DetrModel
    from .modeling_detr import DetrModelOutput as DetrModelOutput
    from .modeling_detr import DetrObjectDetectionOutput as DetrObjectDetectionOutput
    from .modeling_detr import DetrPreTrainedModel as DetrPreTrainedModel
    from .modeling_detr_segmentation import DetrForSegmentation as DetrForSegmentation
    from .modeling_detr_segmentation import DetrSegmentationOutput as DetrSegmentationOutput
    from .training import CocoMetric as CocoMetric
    from .training import DetrTrainer as DetrTrainer
    from .training import DetrTrainingArguments as DetrTrainingArguments
    from .training import evaluate_model as evaluate_model
    from .training import imagenet_start as imagenet_start
    from .training import parameter_groups as parameter_groups
    from .visualization import draw_detections as draw_detections
    from .visualization import draw_masks as draw_masks
    from .visualization import draw_panoptic as draw_panoptic


def __getattr__(name: str):
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value
    raise AttributeError(f"module 'hf_detr' has no attribute {name!r}; it offers {', '.join(_HOME)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
