"""How fresh weights start."""

import torch
from torch import nn
from transformers import initialization

from .frozen_norm import FrozenBatchNorm2d


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """The original's: Xavier in the transformer, PyTorch's own in projection and heads, queries N(0, 1).

    Transformers calls it for every module with tensors of its own that no checkpoint brought, and for no other; the
    functions of `initialization` leave those tensors alone that a checkpoint did bring.
    """
    if isinstance(module, nn.Linear) and hasattr(module, "xavier_gain"):
        initialization.xavier_uniform_(module.weight, gain=module.xavier_gain)
        if module.starts_without_bias:
            initialization.zeros_(module.bias)
        else:
            initialization.uniform_(module.bias, *_pytorch_bounds(module))
    elif getattr(module, "starts_kaiming", False):  # the mask head's
        initialization.kaiming_uniform_(module.weight, a=1)
        initialization.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.bias is None:  # a backbone's, missing in the checkpoint
        initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, (nn.Linear, nn.Conv2d)):
        initialization.uniform_(module.weight, *_pytorch_bounds(module))
        if module.bias is not None:
            initialization.uniform_(module.bias, *_pytorch_bounds(module))
    elif isinstance(module, nn.Embedding):
        if getattr(module, "starts_at_zero", False):
            initialization.zeros_(module.weight)
        elif getattr(module, "starts_uniform", False):
            initialization.uniform_(module.weight)
        else:
            initialization.normal_(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, FrozenBatchNorm2d)):
        if module.weight is not None:
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        if getattr(module, "running_mean", None) is not None:
            initialization.zeros_(module.running_mean)
            initialization.ones_(module.running_var)
    if hasattr(module, "init_non_persistent_buffers"):  # timm's tables, which no checkpoint holds
        module.init_non_persistent_buffers()


def _pytorch_bounds(layer: nn.Linear | nn.Conv2d) -> tuple[float, float]:
    """Between which `nn.Linear` and `nn.Conv2d` draw weights and biases, which the original leaves in place."""
    bound = layer.weight[0].numel() ** -0.5  # fan in
    return -bound, bound
