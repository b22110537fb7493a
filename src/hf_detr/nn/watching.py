"""Whether anybody would notice that a part is computed in another way: those who do get the published way."""

import torch
from torch import nn
from torch.nn.modules import module as torch_module


def is_listened_to(part: nn.Module) -> bool:
    """By hooks on what is below `part`: they want to hear every call of every module, each with the whole batch."""
    return torch_module._has_any_global_hook() or any(
        below._forward_hooks or below._forward_pre_hooks or below._backward_hooks or below._backward_pre_hooks
        for below in part.modules()
        if below is not part
    )


def is_recorded() -> bool:
    """By a compiler or tracer, a mode that counts or changes operations (FLOP counters, fake tensors), or a transform
    (vmap): they know PyTorch's own operators alone, and want one program for all sizes."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
