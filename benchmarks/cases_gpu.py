"""What a training step asks of a GPU besides arithmetic: waits of the host, and starts of kernels."""

import warnings
from collections.abc import Callable

import torch

from cases import Bench, Case, Counts
from contestants import ours, stock, training_step
from inputs import batch, labels

# as the profiler names the calls that start a kernel
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


def _steps(bench: Bench) -> dict[str, Callable[[], None]]:
    """A bf16 training step of each, auxiliary loss on, after two steps to warm up."""
    count, height, width = bench.pick(quick=(2, 64, 96), cpu=(2, 480, 640), cuda=(8, 800, 800))
    pixels = batch(count, height, width).to(bench.device)
    targets = [{name: value.to(bench.device) for name, value in label.items()} for label in labels([7] * count)]
    steps = {}
    for name, build in (("ours", ours), ("stock", stock)):
        model = build(bench.checkpoint, bench.device, auxiliary_loss=True)

        def loss_of(model=model):
            with torch.autocast(bench.device.type, torch.bfloat16):
                return model(pixel_values=pixels, labels=targets).loss

        steps[name] = training_step(model, loss_of)
        for _ in range(2):
            steps[name]()
    return steps


def count_synchronisations(step: Callable[[], None]) -> int:
    """How often PyTorch makes the host wait for the GPU within one call."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in caught)


def count_launches(step: Callable[[], None]) -> int:
    """Kernels that one call starts."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.key in _LAUNCHES)


def host_synchronisations(bench: Bench) -> Counts:
    counts = {name: {"host synchronisations": count_synchronisations(step)} for name, step in _steps(bench).items()}
    return Counts(counts, limits={"host synchronisations": 2}, notes="of one training step, optimizer included.")


def kernel_launches(bench: Bench) -> Counts:
    counts = {name: {"kernel launches": count_launches(step)} for name, step in _steps(bench).items()}
    return Counts(counts, notes="of one training step, optimizer included.")


_GPU_ONLY = {"devices": ("cuda",), "reason": "needs a GPU (--device cuda)"}
CASES = [
    Case("host_synchronisations", "host synchronisations of one training step", host_synchronisations, **_GPU_ONLY),
    Case("kernel_launches", "kernel launches of one training step", kernel_launches, **_GPU_ONLY),
]
