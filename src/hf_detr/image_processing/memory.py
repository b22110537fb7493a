"""Memory that a batch leaves to the next one.

A canvas is of tens of MiB. Memory of that size goes back to the system when it is freed, and comes back page by page
while the pictures are drawn. So what the last freed tensor lay
in is kept for the next of its kind: at most one batch for each process, 256 MiB for each kind of number.
"""

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor

_LEAST_BYTES = 2**20  # below, the allocator keeps it anyway
_MOST_BYTES = 2**28

_spare: dict[torch.dtype, np.ndarray] = {}


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`: contiguous, of any content. Memory is used again once nothing that shares it is there any more,
    views and NumPy's among them."""
    count = prod(shape)
    if device.type != "cpu" or not _LEAST_BYTES <= count * dtype.itemsize <= _MOST_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _spare.pop(dtype, None)
    if memory is None or not count <= len(memory) <= 2 * count:
        memory = torch.empty(count, dtype=dtype).numpy()
    lent = memory[:count]  # an object of its own, which lives as long as the tensor's storage
    weakref.finalize(lent, _spare.__setitem__, dtype, memory).atexit = False
    return torch.from_numpy(lent).view(shape)
