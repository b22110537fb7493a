"""An exponential moving average of the weights: steadier than the last step's, and usually a better detector."""

from copy import deepcopy

import torch
from torch import nn


class WeightAverage:
    """Keeps `model`, a copy whose parameters are averaged over the steps, and whose buffers are the last.

    The decay grows with the number of steps, min(decay, (1 + step) / (10 + step)), so that the weights at the start are
    forgotten soon. None for `decay` averages over the last seventeenth of the steps so far, however many they are: the
    power function of Karras et al. 2024 (EDM2, 3.1). Either follows from the step alone, so a resumed run goes on
    exactly. Nothing is read from the device.
    """

    def __init__(self, model: nn.Module, decay: float | None):
        self.decay = decay
        self.model = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after step number `step`, counted from 1."""
        decay = 1 - 17 / (step + 16) if self.decay is None else min(self.decay, (1 + step) / (10 + step))
        averaged, current = list(self.model.parameters()), [one.detach() for one in model.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self._copy_buffers(model)

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Becomes an exact copy of `model`."""
        for averaged, current in zip(self.model.parameters(), model.parameters(), strict=True):
            averaged.copy_(current)
        self._copy_buffers(model)

    def _copy_buffers(self, model: nn.Module) -> None:
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
