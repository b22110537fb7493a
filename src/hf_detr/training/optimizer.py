"""The paper's optimizer settings (A.4): the backbone learns ten times slower than the transformer and the heads."""

from torch import nn


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 1e-4,
    backbone_learning_rate: float = 1e-5,
    weight_decay: float = 1e-4,
) -> list[dict]:
    """Two groups for `torch.optim.AdamW`: first everything but the backbone, then the backbone, if any of it trains.

    Frozen parameters are left out, so freeze and unfreeze before calling this. Weight decay goes to all, norms and
    biases as well, as in the original. A model wrapped for data parallelism is understood too. Raises ValueError where
    nothing trains, or where a number is negative.
    """
    numbers = {
        "learning_rate": learning_rate,
        "backbone_learning_rate": backbone_learning_rate,
        "weight_decay": weight_decay,
    }
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name}={value!r} is not a number of at least 0.")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("Every parameter of the model is frozen; unfreeze some (requires_grad_()) before training.")
    # "model.backbone.conv_encoder..." of the detector, "backbone...." of DetrModel
    backbone = [parameter for name, parameter in trained if "backbone" in name.split(".")]
    others = [parameter for name, parameter in trained if "backbone" not in name.split(".")]
    groups = [
        {"params": others, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": backbone, "lr": backbone_learning_rate, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]
