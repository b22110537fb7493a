"""The paper's optimizer settings (A.4): the backbone learns ten times slower than the transformer and the heads."""

from torch import nn

# The transformer's linear layers, by the last part of their names; adapters on them have other names.
_LINEAR_LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "fc1", "fc2"})


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 1e-4,
    backbone_learning_rate: float = 1e-5,
    weight_decay: float = 1e-4,
    class_head_learning_rate: float | None = None,
    muon: bool = False,
) -> list[dict]:
    """Two groups for `torch.optim.AdamW`: first everything but the backbone, then the backbone, if any of it trains.
    Their key `name` is "others" and "backbone".

    With `class_head_learning_rate` the class head, which starts afresh where the classes are new, leaves the first and
    follows, as a group of its own, "class_head". With `muon` the weights of the transformer's linear layers leave it
    too and come last, as "matrices", for `MuonAdamW`, which moves them by orthogonal steps.

    Frozen parameters are left out, so freeze and unfreeze before calling this. Weight decay goes to all, norms and
    biases as well, as in the original. A model wrapped for data parallelism is understood too. Raises ValueError where
    nothing trains, or where a number is negative.
    """
    numbers = {
        "learning_rate": learning_rate,
        "backbone_learning_rate": backbone_learning_rate,
        "weight_decay": weight_decay,
        "class_head_learning_rate": learning_rate if class_head_learning_rate is None else class_head_learning_rate,
    }
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}={value!r} is not a number of at least 0.")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("Every parameter of the model is frozen; unfreeze some (requires_grad_()) before training.")
    rates = {"others": learning_rate, "backbone": backbone_learning_rate}
    if class_head_learning_rate is not None:
        rates["class_head"] = class_head_learning_rate
    if muon:
        rates["matrices"] = learning_rate
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in trained:
        kind = _kind_of(name.split("."))
        members[kind if kind in rates else "others"].append(parameter)
    return [
        {"name": kind, "params": members[kind], "lr": rate, "weight_decay": weight_decay}
        | ({"orthogonal": True} if kind == "matrices" else {})
        for kind, rate in rates.items()
        if members[kind]
    ]


def _kind_of(path: list[str]) -> str:
    # "model.backbone.conv_encoder..." of the detector, "backbone...." of DetrModel
    if "backbone" in path:
        return "backbone"
    if "class_labels_classifier" in path:
        return "class_head"
    is_matrix = path[-1] == "weight" and "layers" in path and path[-2] in _LINEAR_LAYERS
    return "matrices" if is_matrix else "others"
