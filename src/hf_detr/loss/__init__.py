"""The bipartite loss: callables without parameters, and pure functions of tensors."""

from .criterion import SetCriterion
from .denoising import NoisedTargets, noise_targets
from .encoder_loss import CellPredictions
from .matcher import HungarianMatcher, Matches
from .targets import Targets, pack_targets

__all__ = [
    "CellPredictions",
    "HungarianMatcher",
    "Matches",
    "NoisedTargets",
    "SetCriterion",
    "Targets",
    "noise_targets",
    "pack_targets",
]
