"""A frozen norm after a convolution is one more scale and shift of its output, so it can be done to the weights.

`norm(conv(x, w)) = conv(x, scale * w) + shift`: the weights are far smaller than the feature maps, in training too,
where the weight's gradient still passes through the scale. Names and values in the state dict stay as they were.

The result is equal but for rounding. Rounding moves some activations across a ReLU's corner, and with them single
gradient norms by more than 1e-4; so gradients in eval mode, which nobody waits for, are computed in the published
order.
"""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, fx, nn

from .frozen_norm import FrozenBatchNorm2d


class FoldedConv2d(nn.Conv2d):
    """A convolution that also does the frozen norm behind it. The norm keeps its numbers and its activation."""

    def does_the_norm(self) -> bool:
        return self.training or not torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if not self.does_the_norm():
            return self._convolve(x, self.weight, self.bias)
        return self._convolve(x, *self.folded())

    @property
    def norm_behind(self) -> FrozenBatchNorm2d:
        return self.__dict__["norm"]

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias that do the norm as well."""
        scale, shift = self.norm_behind.scale_and_shift()
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype)
        bias = shift if self.bias is None else shift + self.bias * scale
        return weight, bias.to(weight.dtype)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class FoldedConv2dSame(FoldedConv2d):
    """The same with the padding of TensorFlow, which depends on the size of the input."""

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = pad_same(x, self.weight.shape[-2:], self.stride, self.dilation)
        return F.conv2d(x, weight, bias, self.stride, (0, 0), self.dilation, self.groups)


_FOLDED = {nn.Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}
_PLAIN = {folded: plain for plain, folded in _FOLDED.items()}


def fold_norms(module: nn.Module) -> int:
    """Folds every frozen norm below `module` that reads the output of one convolution, which nothing else reads.

    Which ones do is read from the program of each part. A part whose program cannot be traced keeps its norms as they
    are, which is slower and gives the same. In place; returns how many were folded.
    """
    count = 0
    for part in list(module.modules()):
        children = dict(part.named_children())
        if not any(isinstance(child, FrozenBatchNorm2d) for child in children.values()):
            continue
        for convolution, norm in _pairs(part):
            if norm.folded_into is not None or type(convolution) not in _FOLDED:
                continue
            convolution.__class__ = _FOLDED[type(convolution)]
            # past nn.Module's registration: both are children already, elsewhere
            convolution.__dict__["norm"] = norm
            norm.__dict__["folded_into"] = convolution
            count += 1
    return count


def unfold_norms(module: nn.Module) -> int:
    """Takes every fold below `module` back, in place; returns how many."""
    count = 0
    for part in module.modules():
        if type(part) in _PLAIN:
            del part.__dict__.pop("norm").__dict__["folded_into"]
            part.__class__ = _PLAIN[type(part)]
            count += 1
    return count


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return True


def _pairs(part: nn.Module) -> list[tuple[nn.Module, FrozenBatchNorm2d]]:
    try:
        graph = _ChildrenAreLeaves().trace(part)
    except Exception:  # whatever its program does; a norm that is not folded is still right
        return []
    children = dict(part.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    pairs = []
    for node in calls:
        source = node.args[0] if node.args else None
        if (
            isinstance(children[node.target], FrozenBatchNorm2d)
            and isinstance(source, fx.Node)
            and source.op == "call_module"
            and len(source.users) == 1
            and targets.count(node.target) == targets.count(source.target) == 1
        ):
            convolution = children[source.target]
            while isinstance(convolution, nn.Sequential):  # a stem of several convolutions
                convolution = convolution[-1]
            pairs.append((convolution, children[node.target]))
    return pairs
