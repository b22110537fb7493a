"""Batch norm that has stopped learning: statistics, scale and shift are constants.

The paper trains with the backbone's norms frozen (A.4): a detector's batches are too small to estimate statistics.
"""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """(B, C, H, W) -> (B, C, H, W): the batch norm it was made from, as in eval mode, in any mode.

    One operation that keeps the dtype of its input. `drop` and `act` are what timm puts inside some of its norms
    (`BatchNormAct2d`), so that nothing of them is lost. All four vectors are buffers: no optimizer sees them.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, drop: nn.Module | None = None, act: nn.Module | None = None
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.drop = drop if drop is not None else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == self.weight.dtype and torch.is_grad_enabled():
            # x * scale + shift, whose backward pass is one product; that of batch_norm takes up to ten times as long on
            # a CPU, and a twentieth of a training step
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            x = torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        else:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return self.act(self.drop(x))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # a live norm's counter
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def freeze_norms(module: nn.Module) -> int:
    """Replaces every 2d batch norm below `module` by its frozen form, in place; returns how many there were.

    Raises ValueError for a norm that keeps no statistics: it has nothing that could be frozen.
    """
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            if child.running_mean is None:
                raise ValueError(
                    f"{name}: {type(child).__name__} keeps no running statistics and cannot be frozen; "
                    "set freeze_backbone_norms=False."
                )
            setattr(module, name, _frozen(child).train(child.training))
            count += 1
        else:
            count += freeze_norms(child)
    return count


def unfreeze_norms(module: nn.Module) -> int:
    """Replaces every frozen norm below `module` by a live one with the same numbers, in place; returns how many."""
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, _live(child).train(child.training))
            count += 1
        else:
            count += unfreeze_norms(child)
    return count


def drop_batch_counters(module: nn.Module) -> None:
    """Takes the counter out of live batch norms, in place: it only serves a cumulative average (momentum=None), and
    without it live and frozen norms have the same entries in a state dict."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.momentum is not None:
            norm.num_batches_tracked = None


@torch.no_grad()
def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps, getattr(norm, "drop", None), getattr(norm, "act", None))
    frozen.running_mean = norm.running_mean.detach()
    frozen.running_var = norm.running_var.detach()
    frozen = frozen.to(norm.running_mean.device)  # a norm without affine has no weight to take
    if norm.affine:
        frozen.weight, frozen.bias = norm.weight.detach(), norm.bias.detach()
    return frozen


@torch.no_grad()
def _live(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    plain = isinstance(frozen.act, nn.Identity) and isinstance(frozen.drop, nn.Identity)
    device = frozen.weight.device
    if plain:
        norm = nn.BatchNorm2d(frozen.num_features, eps=frozen.eps, device=device)
    else:
        norm = BatchNormAct2d(frozen.num_features, eps=frozen.eps, apply_act=False, device=device)
        norm.drop, norm.act = frozen.drop, frozen.act
    norm.weight, norm.bias = nn.Parameter(frozen.weight), nn.Parameter(frozen.bias)
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    drop_batch_counters(norm)
    return norm
