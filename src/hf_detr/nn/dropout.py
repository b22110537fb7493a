"""Dropout whose random numbers cost a third on the CPU, where drawing them one by one takes 9% of a training step.

One draw of 64 bits decides on four elements, each with 16 of them. The chance is therefore a multiple of 1 / 65,536
(0.1 becomes 0.100006), and what is kept is scaled by exactly that. Everything else is `torch.nn.functional.dropout`,
which also does the work on other devices and in compiled programs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zeroes elements with chance `p` in [0, 1) and scales the others up, in training; `x` itself otherwise."""
    if not training or p == 0.0:
        return x
    dropped = round(p * _STEPS)
    if x.device.type != "cpu" or not 0 < dropped < _STEPS or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (bits >= dropped - _STEPS // 2).to(x.dtype).mul_(_STEPS / (_STEPS - dropped))
    return x * keep
