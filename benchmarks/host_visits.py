"""How often the host waits for the device, and how many operators the device is given: on a GPU, or without one.

Without a GPU a device is pretended: tensors say that they are elsewhere (on `meta`) while the processor computes their
values, and every operator passes a counter on its way. A visit is whatever needs a value of the device on the host:

- a copy of a tensor to the host: `cpu()`, `to("cpu")`, `tolist()`, `copy_` into a tensor of the host;
- a number read: `item()`, `float()`, `int()`, `bool()`, `if tensor`, `torch.equal`, `torch.allclose`;
- a result whose shape depends on values: `nonzero`, one-argument `where`, indexing by a mask, `masked_select`,
  `unique`, `bincount`, `repeat_interleave` without `output_size`;
- the check of a matrix inversion or decomposition for failure.

Mixing tensors of host and device in one operator is an error, as on a GPU; so is `numpy()` of a tensor of the device.
Not counted are copies to the device, for which a GPU makes the host wait unless the memory is pinned, and what single
kernels of a GPU do inside; code that asks for `device.type == "cuda"` takes its other branch. A real GPU counts these.
"""

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

PRETENDED = torch.device("meta")
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense, _aten.equal, _aten.allclose, _aten._linalg_check_errors}
_SHAPES = {_aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive}
_SHAPES |= {_aten.bincount}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")  # the profiler's names


class _DeviceTensor(Tensor):
    """Says that it is on `PRETENDED`; `value` is on the processor."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "_DeviceTensor":
        layout = (value.shape, value.stride(), value.storage_offset())
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=value.dtype, device=PRETENDED)
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a tensor on the pretended device, outside of `with HostVisits()`.")


class HostVisits(TorchDispatchMode):
    """A context with a pretended device: what is moved `.to(PRETENDED)` within it is computed there, and counted.

    Attributes:
        visits: kind -> how often the host needed a value.
        operators: how many operators computed something on the device; views compute nothing.
    """

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.visits: Counter[str] = Counter()
        self.operators = 0

    def __enter__(self):
        self._opened = contextlib.ExitStack()
        autocast = torch.autocast  # knows no `meta`
        torch.autocast = lambda device_type, *args, **kwargs: autocast(
            "cpu" if device_type == PRETENDED.type else device_type, *args, **kwargs
        )
        self._opened.callback(setattr, torch, "autocast", autocast)
        self._opened.enter_context(_FromAndToLists())
        return super().__enter__()

    def __exit__(self, *error):
        self._opened.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        operator = func._overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        reads_device = any(isinstance(tensor, _DeviceTensor) for tensor in tensors)
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if operator is _aten._fused_sdp_choice:
            return 0  # attention written out, which every device can do
        if operator is _aten.copy_ and not isinstance(args[0], _DeviceTensor):
            target = _CPU  # the result is there
        if reads_device:
            self._count(func, args, kwargs, target)
            host = [tensor for tensor in tensors if tensor.ndim and not isinstance(tensor, _DeviceTensor)]
            if host and operator is not _aten.copy_ and operator not in _INDEXING:
                raise RuntimeError(f"{func}: of tensors on the device and on the host, {[t.shape for t in host]}.")
        if target == PRETENDED:
            kwargs["device"] = _CPU
        values, named = tree_map_only(_DeviceTensor, lambda tensor: tensor.value, (args, kwargs))
        out = func(*values, **named)
        if target == PRETENDED or (reads_device and target is None):
            out = tree_map_only(Tensor, _DeviceTensor, out)
            return return_and_correct_aliasing(func, args, kwargs, out)
        return args[0] if operator is _aten.copy_ else out

    def _count(self, func, args: tuple, kwargs: dict, target: torch.device | None) -> None:
        operator = func._overloadpacket
        if target is not None and target != PRETENDED:
            self.visits["copy to the host"] += 1
        elif operator in _READS:
            self.visits["number read"] += 1
        elif (
            operator in _SHAPES
            or (operator is _aten.repeat_interleave and kwargs.get("output_size") is None)
            or (operator in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]))
        ):
            self.visits["shape read"] += 1
        elif not func.is_view:
            self.operators += 1


class _FromAndToLists(TorchFunctionMode):
    """`torch.tensor(list, device=...)` and `tolist()` pass by no operator that could be counted; copies do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], _DeviceTensor):
            return args[0].cpu().tolist()
        makes = func in (torch.tensor, torch.as_tensor, torch.asarray)
        if makes and kwargs.get("device") is not None and torch.device(kwargs["device"]) == PRETENDED:
            if isinstance(args[0], _DeviceTensor):
                return args[0].to(kwargs.get("dtype"))
            return func(*args, **{**kwargs, "device": _CPU}).to(PRETENDED)
        return func(*args, **kwargs)


@contextlib.contextmanager
def counting_device(device: torch.device) -> Iterator[tuple[torch.device, Callable[[Callable[[], object]], dict]]]:
    """The GPU itself, or in place of a processor the pretended device; and a function that counts for one call there:
    "host synchronisations", and "kernel launches" (GPU) or "operators" (pretended)."""
    if device.type == "cuda":
        yield device, _count_on_gpu
        return
    with HostVisits() as counter:
        yield PRETENDED, functools.partial(_count_pretended, counter)


def _count_pretended(counter: HostVisits, work: Callable[[], object]) -> dict[str, int]:
    counter.reset()
    work()
    return {"host synchronisations": counter.visits.total(), "operators": counter.operators}


def _count_on_gpu(work: Callable[[], object]) -> dict[str, int]:
    """PyTorch's own warnings of waits, and the profiler's starts of kernels, each of a call of its own."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    return {
        "host synchronisations": sum("called a synchronizing" in str(warning.message) for warning in caught),
        "kernel launches": sum(event.count for event in profile.key_averages() if event.key in _LAUNCHES),
    }
