"""The memory of one batch, used again for the next.

A canvas of a batch takes tens of MiB. The C library gives memory of that size back to the system when it is freed, and
gets it back page by page while the next canvas is written, which is half of the CPU time of a call: 378 ms without
this buffer, 186 ms with it, for 16 images of 640 x 480 to 800 (two cores; stock transformers 724 ms).
"""

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor

_LEAST_BYTES = 2**20  # the allocator keeps what is smaller
_MOST_BYTES = 2**28


class CanvasBuffer:
    """Memory for canvases, owned by one image processor: at most one block of each dtype, of at most 256 MiB.

    A block is lent to one tensor and comes back when nothing shares its memory any more: no tensor, view, storage,
    NumPy array or DLPack capsule. A block that is lent when another of its dtype is needed is not touched: that one is
    allocated as usual. Copies and pickles of a buffer are empty, threads may share one (taking and giving back are one
    operation of a dict each), and the blocks of a forked process are its own.
    """

    def __init__(self):
        self._blocks: dict[torch.dtype, np.ndarray] = {}

    def __reduce__(self):
        return CanvasBuffer, ()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """As `torch.empty`: contiguous, of any content. Only memory of the CPU comes from a block."""
        count = prod(shape)
        if device.type != "cpu" or not _LEAST_BYTES <= count * dtype.itemsize <= _MOST_BYTES:
            return torch.empty(shape, dtype=dtype, device=device)
        block = self._blocks.pop(dtype, None)
        if block is None or not count <= len(block) <= 2 * count:
            block = torch.empty(count, dtype=dtype, device="cpu").numpy()
        lent = block[:count]  # an object of its own, which lives as long as the tensor's storage
        weakref.finalize(lent, self._blocks.__setitem__, dtype, block).atexit = False
        return torch.from_numpy(lent).view(shape)
