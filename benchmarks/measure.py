"""Clocks and scales: how work is timed, what memory it takes, and how fast this machine multiplies matrices."""

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop


def summarise(samples: Sequence[float]) -> dict[str, float | int]:
    """Median and quartiles, in the unit of the samples, and how many there are."""
    q1, median, q3 = np.percentile(samples, (25, 50, 75)).tolist()
    return {"median": median, "q1": q1, "q3": q3, "samples": len(samples)}


def time_once(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; a GPU has done its part when the clock stops."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def alternate(
    works: dict[str, Callable[[], object]],
    device: torch.device,
    budget_s: float,
    least_rounds: int,
    most_rounds: int,
) -> dict[str, list[float]]:
    """Seconds of each work in every round. A round calls each once, and another one begins each time, so that changes
    of the machine's speed concern all alike.

    Rounds end when `budget_s` seconds are spent, after at least `least_rounds` and at most `most_rounds`.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    gc.collect()
    started = time.perf_counter()
    for index in range(most_rounds):
        if index >= least_rounds and time.perf_counter() - started > budget_s:
            break
        first = index % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(time_once(works[name], device))
    return samples


def ratios(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float | int]:
    """How many times as long the peer takes: the ratio of the medians, and the quartiles of the rounds' ratios."""
    rounds = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    return {**summarise(rounds), "median": float(np.median(peer) / np.median(ours))}


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """PyTorch lets convolutions on a GPU keep ten bits of float32 numbers. Times are taken with that, as users have it,
    comparisons without."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class _FlopCounter(TorchDispatchMode):
    """PyTorch's formulas by operator, without its record of modules, which breaks on views made under `no_grad`."""

    def __init__(self):
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flop += sdpa_flop(*(tensor.shape for tensor in args[:3]))  # older registries lack it
        elif func._overloadpacket in flop_registry:
            self.flop += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def count_flop(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of one call; a multiply-add is
    two."""
    with _FlopCounter() as counter:
        work()
    return counter.flop


def measure_gemm(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 10) -> float:
    """FLOP/s of the product of two square matrices, the best of some: the peak that is measured, not the one that is
    advertised."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / min(time_once(lambda: torch.mm(a, b), device) for _ in range(repeats))


class PeakMemory:
    """The highest memory since the object was made, above what was taken then; MiB.

    GPU: what PyTorch allocated. CPU: resident memory of this process; None where the system is not Linux, which alone
    tells the peak.
    Call `restart()` to leave out a peak that is not of interest.
    """

    def __init__(self, device: torch.device):
        self.device = device
        give_back_memory()
        self._base = _allocated(device)
        self.restart()

    def restart(self) -> None:
        """Forgets the peak, not the start."""
        give_back_memory()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # sets the peak to what is resident now; man 5 proc

    def mib(self) -> float | None:
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self._base) / 2**20
        # not getrusage: its peak of a process includes that of the one it was started from
        peak = _status("VmHWM")
        return None if peak is None or self._base is None else (peak - self._base) / 2**20


_CLEAR = Path("/proc/self/clear_refs")


def give_back_memory() -> None:
    """Freed memory goes back to the system, so that it is not counted as taken."""
    gc.collect()
    if Path("/proc/self/status").exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def _allocated(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _status(field: str) -> int | None:
    """Bytes, from what Linux says of this process."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
