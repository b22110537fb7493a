"""The bipartite loss: pure functions of tensors."""

from .matcher import Matches, match
from .set_loss import detection_loss
from .targets import Targets, pack_targets

__all__ = ["Matches", "Targets", "detection_loss", "match", "pack_targets"]
