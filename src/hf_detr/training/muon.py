"""AdamW whose matrices move by orthogonal steps: Muon (Jordan et al. 2024) for the transformer's linear layers.

The momentum of a matrix is replaced by the orthogonal matrix nearest to it, so that a step moves all its directions
alike instead of the few that dominate the gradient. With the scale of Liu et al. 2025 ("Muon is Scalable for LLM
Training", 2.2) an entry moves as far as AdamW would move it, so both take the same learning rate and weight decay.
Everything else (vectors, embeddings, convolutions, heads) is AdamW's. It changes nothing at inference.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# N matrices of one shape, H rows, W columns

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: singular values come to about 0.7 to 1.2 in five rounds
_ROUNDS = 5
_AS_ADAMW = 0.2  # the usual root mean square of an update of AdamW (Liu et al., 2.2)


class MuonAdamW(torch.optim.Optimizer):
    """AdamW, and Muon for the groups with `orthogonal=True`, whose parameters must be matrices.

    Args:
        params: parameters or groups, as for any optimizer.
        lr, weight_decay: of all; decoupled, as in AdamW.
        betas, eps: of AdamW.
        momentum: of Muon, in Nesterov's form.

    Raises:
        ValueError: a negative number, or a parameter of an orthogonal group that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        momentum: float = 0.95,
        orthogonal: bool = False,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("momentum", momentum)):
            if not value >= 0:
                raise ValueError(f"{name}={value!r} is not a number of at least 0.")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**defaults, "orthogonal": orthogonal})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if group["orthogonal"] and parameter.ndim != 2:
                raise ValueError(
                    f"A parameter of shape {tuple(parameter.shape)} is no matrix; leave it out of the groups with "
                    "orthogonal=True."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without gradient stay. Nothing is read from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                (self._step_orthogonal if group["orthogonal"] else self._step_adamw)(group, trained)
        return loss

    def _step_orthogonal(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        alike = defaultdict(list)
        for parameter in trained:
            alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
        for (shape, *_), parameters in alike.items():
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._state_of(parameter, "momentum_buffer")["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = orthogonalise(torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"])))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            scale = -group["lr"] * _AS_ADAMW * max(shape) ** 0.5
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=scale)

    def _step_adamw(self, group: dict[str, Any], trained: list[Tensor]) -> None:
        states = [self._state_of(parameter, "exp_avg", "exp_avg_sq") for parameter in trained]
        beta1, beta2 = group["betas"]
        adamw(
            trained,
            [parameter.grad for parameter in trained],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state_of(self, parameter: Tensor, *names: str) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state.update({name: torch.zeros_like(parameter) for name in names})
            if "exp_avg" in names:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return state


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, H, W) -> (N, H, W): each with its singular vectors, and singular values near 1 (0.7 to 1.2); zeros stay
    zeros. Computed in bfloat16, as in Jordan et al., and returned in the type that came in."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = (matrices if wide else matrices.mT).bfloat16()  # the smaller side first: its products are the smaller
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # Frobenius: no singular value above 1
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
