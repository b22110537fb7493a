"""Frozen norms folded into the convolutions before them: a step that is taken for inference, and taken back.

`norm(conv(x, w)) = conv(x, scale * w) + shift`, so a convolution with other weights and a bias does both. The result is
equal but for rounding. A folded network is made of PyTorch's own modules; `print` shows them.
"""

from copy import deepcopy

import torch
from timm.layers import Conv2dSame
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .frozen_norm import FrozenBatchNorm2d

# A subclass of Conv2d may do anything in its forward pass; these are known to use weight and bias as Conv2d does.
_FOLDABLE = (nn.Conv2d, Conv2dSame)


def fold_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Folds every frozen norm below `network` that alone reads the output of one convolution, in place.

    The convolution becomes one with a bias, without gradients; of the norm its dropout and activation stay. A pair is
    left as it is where that would lose something: modules of another type (adapters, quantized layers, wrappers),
    hooks, weights that are not in memory, or a forward pass that `torch.fx` cannot trace.

    Returns the replaced modules by name, which `unfold_norms` takes.
    """
    replaced: dict[str, nn.Module] = {}
    for prefix, part in list(network.named_modules()):
        if not any(isinstance(child, FrozenBatchNorm2d) for child in part.children()):
            continue
        for convolution_name, norm_name in _pairs(part):
            convolution, norm = part.get_submodule(convolution_name), part.get_submodule(norm_name)
            if type(convolution) in _FOLDABLE and type(norm) is FrozenBatchNorm2d and is_plain(convolution, norm):
                part.set_submodule(convolution_name, _folded(convolution, norm))
                part.set_submodule(norm_name, _rest_of(norm))
                prefixed = f"{prefix}." if prefix else ""
                replaced[prefixed + convolution_name], replaced[prefixed + norm_name] = convolution, norm
    return replaced


def unfold_norms(network: nn.Module, replaced: dict[str, nn.Module]) -> None:
    """Puts back what `fold_norms` replaced, on the device and in the dtype that the network has by now. RuntimeError
    where a folded convolution was itself replaced since, as an adapter does, which would be lost."""
    for name, module in replaced.items():
        now = network.get_submodule(name)
        if type(module) in _FOLDABLE and type(now) is not type(module):
            raise RuntimeError(
                f"{name} was folded and is now a {type(now).__name__}, which unfolding would remove; add adapters and "
                "wrappers before fold_norms(), or take them out again."
            )
    for name, module in replaced.items():
        reference = next(network.get_submodule(name).parameters(), None)
        if reference is not None:  # a convolution; the norm behind it follows in the dictionary
            device, dtype = reference.device, reference.dtype
        network.set_submodule(name, module.to(device, dtype).train(network.training))


@torch.no_grad()
def _folded(convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> nn.Conv2d:
    dtype = convolution.weight.dtype
    at_least_float32 = torch.promote_types(dtype, torch.float32)
    weight, bias, mean, variance, scale, shift = (
        None if tensor is None else tensor.detach().to(at_least_float32)
        for tensor in (
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
        )
    )  # fmt: skip
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    folded = deepcopy(convolution)
    folded.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    folded.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return folded


def _rest_of(norm: FrozenBatchNorm2d) -> nn.Module:
    rest = [part for part in (norm.drop, norm.act) if not isinstance(part, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()


def is_plain(*modules: nn.Module) -> bool:
    """Whether modules do what their class says, with weights in memory."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)  # replaced on the instance, as offloading does
        or any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        for module in modules
    )


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return True


def _pairs(part: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the norm that alone reads its output, from the program of one module."""
    try:
        graph = _ChildrenAreLeaves().trace(part)
    except Exception:  # whatever its program does; a norm that is not folded is still right
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    pairs = []
    for node in calls:
        source = node.args[0] if node.args else None
        if (
            isinstance(part.get_submodule(node.target), FrozenBatchNorm2d)
            and isinstance(source, fx.Node)
            and source.op == "call_module"
            and len(source.users) == 1
            and targets.count(node.target) == targets.count(source.target) == 1
        ):
            name = source.target
            while isinstance(part.get_submodule(name), nn.Sequential):  # a stem of several convolutions
                name = f"{name}.{len(part.get_submodule(name)) - 1}"
            pairs.append((name, node.target))
    return pairs
