"""Who trains, and how: one dict of settings for each contestant, and the models they make from the same weights."""

import warnings
from pathlib import Path

import torch
import transformers
from torch import nn

import hf_detr

# What a contestant may set; whatever is left out is as here.
DEFAULTS = {
    "package": "hf_detr",  # or "stock", transformers' own model
    "auxiliary_loss": True,
    "denoising_queries": 0,
    "denoising_box_noise": 0.4,
    "denoising_label_noise": 0.2,
    "query_groups": 1,
    "encoder_auxiliary_loss": False,
    "iou_aware_labels": False,
    "averages": False,  # the moving average of recipe="fast"
    "rate": 1.0,  # times the learning rates of all
    "backbone_rate": 1.0,  # times the backbone's, besides
    "example_recipe": False,  # the optimizer of transformers' example script
}

CONTESTANTS: dict[str, dict] = {
    # transformers' object-detection example: AdamW 5e-5 for everything, gradients clipped at 0.01
    "stock-example": {"package": "stock", "auxiliary_loss": False, "example_recipe": True},
    # stock's model with the optimizer the others have: far better than the example's, and so the one to beat
    "stock": {"package": "stock", "auxiliary_loss": False},
    "stock-auxiliary": {"package": "stock", "auxiliary_loss": True},
    "paper": {},
    "fast": {"encoder_auxiliary_loss": True, "averages": True},
    # one help at a time
    "last-layer-only": {"auxiliary_loss": False},
    "average": {"averages": True},
    "denoising": {"denoising_queries": 3},
    "denoising-1": {"denoising_queries": 1},
    "denoising-6": {"denoising_queries": 6},
    "groups": {"query_groups": 3},
    "iou-aware": {"iou_aware_labels": True},
    "encoder": {"encoder_auxiliary_loss": True},
    # together
    "denoising+groups": {"denoising_queries": 3, "query_groups": 3},
    "denoising+encoder": {"denoising_queries": 3, "encoder_auxiliary_loss": True},
    "denoising+encoder+average": {"denoising_queries": 3, "encoder_auxiliary_loss": True, "averages": True},
    "denoising+encoder+iou-aware": {
        "denoising_queries": 3,
        "encoder_auxiliary_loss": True,
        "iou_aware_labels": True,
    },
}


def settings_of(name: str, changes: dict | None = None) -> dict:
    """All settings of a contestant, by name, with `changes`. Raises ValueError for unknown names."""
    if name not in CONTESTANTS:
        raise ValueError(f"There is no contestant {name!r}; there are {', '.join(CONTESTANTS)}.")
    settings = {**DEFAULTS, **CONTESTANTS[name], **(changes or {})}
    if unknown := set(settings) - set(DEFAULTS):
        raise ValueError(f"A contestant has no setting {sorted(unknown)}; it has {', '.join(DEFAULTS)}.")
    return settings


def make_model(start: Path, settings: dict) -> nn.Module:
    """The contestant's model with the weights of the folder `start`, in training mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if settings["package"] == "stock":
            live_norms = not hf_detr.DetrConfig.from_pretrained(start).freeze_backbone_norms
            model = transformers.DetrForObjectDetection.from_pretrained(
                start, auxiliary_loss=settings["auxiliary_loss"], attn_implementation="sdpa"
            )
            if live_norms:  # stock freezes every norm, also those of random weights, which then can never learn
                _thaw_norms(model)
            return model.train()
        names = ("auxiliary_loss", "denoising_queries", "denoising_box_noise", "denoising_label_noise", "query_groups",
                 "encoder_auxiliary_loss", "iou_aware_labels")  # fmt: skip
        model = hf_detr.DetrForObjectDetection.from_pretrained(start, **{name: settings[name] for name in names})
        return model.train()


def _thaw_norms(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child).__name__ == "DetrFrozenBatchNorm2d":
            norm = nn.BatchNorm2d(len(child.weight))
            norm.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, norm)
        else:
            _thaw_norms(child)


def make_optimizer(model: nn.Module, settings: dict, rate: float, backbone_rate: float) -> torch.optim.Optimizer:
    """AdamW, weight decay 1e-4: `rate` for all but the backbone, `backbone_rate` for that."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if settings["example_recipe"]:
        return torch.optim.AdamW([p for _, p in named], lr=5e-5, weight_decay=1e-4)
    backbone = [p for name, p in named if "backbone" in name.split(".")]
    others = [p for name, p in named if "backbone" not in name.split(".")]
    factor = settings["rate"]
    groups = [
        {"params": others, "lr": rate * factor},
        {"params": backbone, "lr": backbone_rate * factor * settings["backbone_rate"]},
    ]
    return torch.optim.AdamW(groups, weight_decay=1e-4)
