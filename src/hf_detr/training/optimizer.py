"""The paper's optimizer settings (A.4): the backbone learns ten times slower than the transformer and the heads."""

from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 1e-4,
    backbone_learning_rate: float = 1e-5,
    weight_decay: float = 1e-4,
    class_head_learning_rate: float | None = None,
) -> list[dict]:
    """Two groups for `torch.optim.AdamW`: first everything but the backbone, then the backbone, if any of it trains.
    Their key `name` is "others" and "backbone".

    With `class_head_learning_rate` the class head, which starts afresh where the classes are new, leaves the first and
    comes last, as a group of its own, "class_head".

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
        rates["class head"] = class_head_learning_rate
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in trained:
        # "model.backbone.conv_encoder..." of the detector, "backbone...." of DetrModel
        if "backbone" in name.split("."):
            kind = "backbone"
        else:
            kind = "class head" if "class_labels_classifier" in name.split(".") else "others"
        members[kind if kind in rates else "others"].append(parameter)
    return [
        {"name": kind.replace(" ", "_"), "params": members[kind], "lr": rate, "weight_decay": weight_decay}
        for kind, rate in rates.items()
        if members[kind]
    ]
