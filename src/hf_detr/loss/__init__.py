"""The bipartite loss: pure functions of tensors."""

from .criterion import detection_loss
from .denoising import NoisedTargets, noise_targets
from .encoder_loss import CellPredictions
from .matcher import Matches, match
from .targets import Targets, pack_targets

__all__ = [
    "CellPredictions",
    "Matches",
    "NoisedTargets",
    "Targets",
    "detection_loss",
    "match",
    "noise_targets",
    "pack_targets",
]
