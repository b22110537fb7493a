"""Who trains, and how: one dict of settings for each contestant, and the models they make from the same weights."""

import warnings
from pathlib import Path

import timm
import torch
import transformers
from torch import nn

import hf_detr

from . import contrastive, iou_aware

# What a contestant may set; whatever is left out is as here.
DEFAULTS = {
    "package": "hf_detr",  # or "stock", transformers' own model
    "auxiliary_loss": True,
    "denoising_queries": 0,
    "denoising_box_noise": 0.4,
    "denoising_label_noise": 0.2,
    "contrastive": False,  # see `contrastive`
    "query_groups": 1,
    "encoder_auxiliary_loss": False,
    "iou_aware": False,  # see `iou_aware`
    "averages": False,  # the moving average of recipe="fast"
    "class_head_rate": 1.0,  # times the transformer's learning rate
    "rate": 1.0,  # times the learning rates of all
    "backbone_rate": 1.0,  # times the backbone's, besides
    "example_recipe": False,  # the optimizer of transformers' example and guide
    "mended": False,  # stock, with the activations in the backbone's norms that it drops put back
    "share_of_time": 1.0,  # trains for a part of the time, with the whole schedule in it
}

# recipe="fast", which a test compares with the package's
FAST = {"encoder_auxiliary_loss": True, "class_head_rate": 10.0, "averages": True}

CONTESTANTS: dict[str, dict] = {
    # transformers' object-detection example and guide: AdamW 5e-5 for everything, gradients clipped at 0.01
    "stock-example": {"package": "stock", "auxiliary_loss": False, "example_recipe": True},
    "stock-example-auxiliary": {"package": "stock", "example_recipe": True},
    # stock's model with the optimizer the others have: far better than the example's
    "stock": {"package": "stock", "auxiliary_loss": False},
    "stock-auxiliary": {"package": "stock"},
    "stock-mended": {"package": "stock", "auxiliary_loss": False, "mended": True},
    "stock-mended-auxiliary": {"package": "stock", "mended": True},
    "paper": {},
    "fast": FAST,
    "fast-third": {**FAST, "share_of_time": 1 / 3},
    # one help at a time
    "last-layer-only": {"auxiliary_loss": False},
    "average": {"averages": True},
    "class-head-rate": {"class_head_rate": 10.0},
    "encoder": {"encoder_auxiliary_loss": True},
    "denoising": {"denoising_queries": 3},
    "denoising-1": {"denoising_queries": 1},
    "denoising-6": {"denoising_queries": 6},
    "contrastive-denoising": {"denoising_queries": 3, "contrastive": True},
    "groups": {"query_groups": 3},
    "iou-aware": {"iou_aware": True},
    # together
    "denoising+groups": {"denoising_queries": 3, "query_groups": 3},
    "encoder+average": {"encoder_auxiliary_loss": True, "averages": True},
    "average+class-head-rate": {"averages": True, "class_head_rate": 10.0},
    "fast+denoising": {**FAST, "denoising_queries": 3},
    "fast+groups": {**FAST, "query_groups": 3},
    "fast+iou-aware": {**FAST, "iou_aware": True},
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
            if settings["mended"]:
                _put_activations_back(model)
            return model.train()
        if settings["contrastive"]:
            contrastive.install()
        if settings["iou_aware"]:
            iou_aware.install()
        names = ("auxiliary_loss", "denoising_queries", "denoising_box_noise", "denoising_label_noise", "query_groups",
                 "encoder_auxiliary_loss")  # fmt: skip
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


def _put_activations_back(model: nn.Module) -> None:
    """Stock replaces norms that have an activation inside (timm's BatchNormAct2d) by norms without."""
    config = model.config.backbone_config
    backbone = model.model.backbone.model
    whole = timm.create_model(
        config.backbone, features_only=True, out_indices=tuple(config.out_indices), output_stride=config.output_stride
    )
    for name, norm in whole.named_modules():
        if not isinstance(getattr(norm, "act", None), nn.Identity | None):
            frozen = backbone.get_submodule(name)
            backbone.set_submodule(name, nn.Sequential(frozen, norm.act))


def make_optimizer(model: nn.Module, settings: dict, rate: float, backbone_rate: float) -> torch.optim.Optimizer:
    """AdamW, weight decay 1e-4: `rate` for all but the backbone, `backbone_rate` for that."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if settings["example_recipe"]:
        return torch.optim.AdamW([p for _, p in named], lr=5e-5, weight_decay=1e-4, fused=True)
    backbone = [p for name, p in named if "backbone" in name.split(".")]
    class_head = [p for name, p in named if "class_labels_classifier" in name.split(".")]
    others = [p for name, p in named if not {"backbone", "class_labels_classifier"} & set(name.split("."))]
    factor = settings["rate"]
    groups = [
        {"params": others, "lr": rate * factor},
        {"params": class_head, "lr": rate * factor * settings["class_head_rate"]},
        {"params": backbone, "lr": backbone_rate * factor * settings["backbone_rate"]},
    ]
    return torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
