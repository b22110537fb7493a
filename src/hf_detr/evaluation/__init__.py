"""Average precision, panoptic quality and mean IoU, streamed over batches and processes."""

from .coco import CocoEvaluator as CocoEvaluator
from .evaluator import Evaluator as Evaluator
from .evaluator import EvaluatorGroup as EvaluatorGroup
from .evaluator import evaluate_detections as evaluate_detections
from .evaluator import evaluate_model as evaluate_model
from .panoptic import PanopticEvaluator as PanopticEvaluator
from .semantic import SemanticEvaluator as SemanticEvaluator
from .tasks import TASKS as TASKS
from .tasks import evaluator_of as evaluator_of
from .tasks import task_of as task_of
