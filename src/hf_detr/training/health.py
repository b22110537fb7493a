"""Signs that a training has gone wrong, looked at where numbers are on the host anyway."""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

# All queries within this, in sizes of the image and in probability, say the same.
_SAME = 1e-3


class QueryCollapse:
    """Whether all queries of each image say the same: then there is one detection an image, however many objects."""

    def __init__(self):
        self._spread: Tensor | None = None  # (2,) the greatest seen, of boxes and of probabilities

    @torch.no_grad()
    def add(self, logits: Tensor, boxes_cxcywh: Tensor) -> None:
        """Predictions of a batch, (B, Q, C + 1) and (B, Q, 4); nothing is read back."""
        if logits.shape[1] < 2:
            return
        spread = torch.stack([_spread(boxes_cxcywh.float()), _spread(logits.float().softmax(-1))])
        self._spread = spread if self._spread is None else torch.maximum(self._spread, spread)

    def warn(self, where: str) -> None:
        """Says so, if it is so."""
        if self._spread is not None and max(self._spread.tolist()) < _SAME:
            warnings.warn(
                f"{where}: the queries have collapsed, all of an image give the same box and the same class. Lower the "
                "learning rate, clip gradients (max_grad_norm=0.1), or start from a trained checkpoint.",
                UserWarning,
            )


def _spread(values: Tensor) -> Tensor:
    return (values.amax(1) - values.amin(1)).amax()


def warn_if_not_finite(logs: Mapping[str, object], step: int) -> None:
    """Names the logged numbers that are NaN or infinite."""
    bad = [name for name, value in logs.items() if isinstance(value, float) and not math.isfinite(value)]
    if bad:
        warnings.warn(
            f"Step {step}: {', '.join(bad)} not finite. The weights may hold NaN: go on from the checkpoint before, "
            "with a lower learning rate, clipped gradients (max_grad_norm=0.1), or bf16 instead of fp16.",
            UserWarning,
        )
