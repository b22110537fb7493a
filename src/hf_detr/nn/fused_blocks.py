"""ResNet's residual blocks on a CPU: convolution, norm, sum and ReLU in one pass over the feature map.

Otherwise the maps are read and written once for each of these (what that costs: docs/performance.md). oneDNN does them
while it writes a convolution's output; the operations are those that torch.compile generates. In training the same
holds for the forward pass. Wherever that is not possible, a block runs as timm wrote it.
"""

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .folding import FoldedConv2d


class FusedBasicBlock(BasicBlock):
    """The same numbers, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _can_be_fused(self, x):
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return _convolve(self.conv2, _convolve(self.conv1, x), shortcut)


class FusedBottleneck(Bottleneck):
    """The same numbers, but for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _can_be_fused(self, x):
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return _convolve(self.conv3, _convolve(self.conv2, _convolve(self.conv1, x)), shortcut)


_FUSED = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


def fuse_blocks(module: nn.Module) -> int:
    """Lets every residual block below `module` whose norms are folded run in one pass; in place; returns how many."""
    count = 0
    for part in module.modules():
        if type(part) in _FUSED and _has_only_plain_parts(part):
            part.__class__ = _FUSED[type(part)]
            count += 1
    return count


def part_blocks(module: nn.Module) -> int:
    """Takes it back, in place; returns how many."""
    count = 0
    for part in module.modules():
        if type(part) in _PLAIN:
            part.__class__ = _PLAIN[type(part)]
            count += 1
    return count


def _has_only_plain_parts(block: nn.Module) -> bool:
    """Convolution, folded norm, ReLU, and nothing else in between."""
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


def _can_be_fused(block: nn.Module, x: Tensor) -> bool:
    if type(block.conv1) is not FoldedConv2d:  # unfolded since
        return False
    if not block.conv1.does_the_norm():  # gradients in eval mode are computed in the published order, see `folding`
        return False
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if not _supported(dtype) or not (autocast or block.conv1.weight.dtype == dtype):
        return False
    # whoever listens to a part wants to hear it
    return not (
        torch_module._has_any_global_hook()
        or any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in block.modules()
            if part is not block
        )
    )


def _supported(dtype: torch.dtype) -> bool:
    operations = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if not hasattr(operations, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return hasattr(operations, "_is_mkldnn_bf16_supported") and operations._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def _convolve(convolution: FoldedConv2d, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """relu(norm(conv(x)) + shortcut)."""
    weight, bias = convolution.folded()
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        shortcut = None if shortcut is None else shortcut.to(dtype)
    where = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
    return _ConvolutionReLU.apply(x, weight, bias, shortcut, *where)


class _ConvolutionReLU(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, shortcut, padding, stride, dilation, groups):
        where = (padding, stride, dilation, groups)
        if shortcut is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *where, "relu", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, shortcut, weight, bias, *where, "add", 1.0, "relu", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, _, *ctx.where = inputs
        ctx.num_channels = len(bias)
        ctx.save_for_backward(x, weight, output)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, output = ctx.saved_tensors
        padding, stride, dilation, groups = ctx.where
        gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [ctx.num_channels], stride, padding, dilation, False, (0, 0), groups,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        of_shortcut = gradient if ctx.needs_input_grad[3] else None
        return of_x, of_weight, of_bias, of_shortcut, None, None, None, None
