"""The bipartite loss: callables without parameters, and pure functions of tensors."""

from .criterion import SetCriterion, SetLosses
from .denoising import NoisedTargets, noise_targets
from .encoder_loss import CellPredictions
from .mask_loss import MaskCriterion
from .matcher import HungarianMatcher, Matches
from .targets import Targets, pack_targets

__all__ = [
    "CellPredictions",
    "HungarianMatcher",
    "MaskCriterion",
    "Matches",
    "NoisedTargets",
    "SetCriterion",
    "SetLosses",
    "Targets",
    "noise_targets",
    "pack_targets",
]
