"""Training: arguments, trainer, optimizer groups, evaluation."""

from ..evaluation import evaluate_model as evaluate_model
from .arguments import DetrTrainingArguments as DetrTrainingArguments
from .checkpoint_folders import last_checkpoint as last_checkpoint
from .imagenet_start import imagenet_start as imagenet_start
from .metric import CocoMetric as CocoMetric
from .muon import MuonAdamW as MuonAdamW
from .optimizer import parameter_groups as parameter_groups
from .time_limit import TimeLimit as TimeLimit
from .trainer import DetrTrainer as DetrTrainer
