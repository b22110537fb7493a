"""ResNet's residual blocks on a CPU, where no gradient is wanted: a block's output is written over its shortcut.

As published, a block makes a feature map for its last convolution, reads it and the shortcut for their sum, and reads
the sum for ReLU. Early maps are of tens of MiB, and memory of that size is fresh from the system every time, page by
page (what that costs: docs/performance.md). oneDNN can add the convolution to a map that is there already
and apply ReLU on the way, so one map serves a whole stage. Wherever that is not possible, blocks run as timm wrote
them.
"""

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .folding import FoldedConv2d
from .watching import is_listened_to, is_recorded


class FusedStage(nn.Sequential):
    """Residual blocks one after the other: the same numbers, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _can_be_fused(self, x):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.to(dtype)
        for index, block in enumerate(self):
            if block.downsample is not None:
                shortcut = block.downsample(x)
            else:
                shortcut = x if index else x.clone()  # what came from outside belongs to others
            x = _add_branch(block, x, shortcut)
        return x


def fuse_stages(module: nn.Module) -> int:
    """Lets every row of residual blocks below `module` whose norms are folded run in place; returns how many."""
    count = 0
    for part in module.modules():
        if type(part) is nn.Sequential and len(part) and all(_has_only_plain_parts(block) for block in part):
            part.__class__ = FusedStage
            count += 1
    return count


def part_stages(module: nn.Module) -> int:
    """Takes it back; returns how many."""
    count = 0
    for part in module.modules():
        if type(part) is FusedStage:
            part.__class__ = nn.Sequential
            count += 1
    return count


def _has_only_plain_parts(block: nn.Module) -> bool:
    """A residual block of convolutions, folded norms and ReLU, and nothing else in between."""
    if type(block) not in (BasicBlock, Bottleneck):
        return False
    convolutions = [part for name, part in block.named_children() if name.startswith("conv")]
    activations = [part for name, part in block.named_children() if name.startswith("act")]
    others = [getattr(block, name, None) for name in ("se", "drop_path", "drop_block", "aa")]
    return (
        all(type(part) is FoldedConv2d and part.padding_mode == "zeros" for part in convolutions)
        and all(type(part) is nn.ReLU for part in activations)
        and all(part is None or type(part) is nn.Identity for part in others)
        and all(
            type(part) is nn.Identity for conv in convolutions for part in (conv.norm_behind.drop, conv.norm_behind.act)
        )
    )


def _can_be_fused(stage: FusedStage, x: Tensor) -> bool:
    if is_recorded() or x.device.type != "cpu" or type(x) is not Tensor or not x.numel():
        return False
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return False  # oneDNN writes over maps in its own layout alone, and one cell to a map is of either
    first = stage[0].conv1
    if type(first) is not FoldedConv2d or not first.does_the_norm():  # unfolded since, or see `folding`
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in stage.parameters())):
        return False
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if not _supported(dtype) or not (autocast or first.weight.dtype == dtype):
        return False
    return not is_listened_to(stage)


def _supported(dtype: torch.dtype) -> bool:
    operations = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(operations, "_convolution_pointwise_"):
        return False
    if dtype == torch.bfloat16:
        return hasattr(operations, "_is_mkldnn_bf16_supported") and operations._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def _add_branch(block: BasicBlock | Bottleneck, x: Tensor, shortcut: Tensor) -> Tensor:
    """relu(branch(x) + shortcut), in the memory of `shortcut`."""
    *convolutions, last = (part for name, part in block.named_children() if name.startswith("conv"))
    for convolution in convolutions:
        x = torch.ops.mkldnn._convolution_pointwise(x, *_arguments(convolution, x.dtype), "relu", [], "")
    arguments = _arguments(last, x.dtype)
    return torch.ops.mkldnn._convolution_pointwise_(shortcut, x, *arguments, "add", 1.0, "relu", [], "")


def _arguments(convolution: FoldedConv2d, dtype: torch.dtype) -> tuple:
    weight, bias = (tensor.to(dtype) for tensor in convolution.folded())
    return weight, bias, convolution.padding, convolution.stride, convolution.dilation, convolution.groups
