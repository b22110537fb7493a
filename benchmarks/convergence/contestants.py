"""The contestants: a dict of settings each, and the models and optimizers these make from the same weights."""

import warnings
from pathlib import Path

import timm
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
    "averages": False,  # the moving average of recipe="fast"
    "class_head_rate": 1.0,  # times the transformer's learning rate
    "rate": 1.0,  # times the learning rates of the case
    "batch": 1.0,  # times the batch size of the case
    "clip": 1.0,  # the gradients' largest norm
    "schedule": "cosine",  # of `one_run.rate_at`
    "augment": "none",  # but for flips; or "paper" or "strong", of `DetectionTransform`, for cases with rows
    "example_recipe": False,  # the optimizer of transformers' example and guide
    "restored": False,  # stock, with the activations in the backbone's norms that it drops
    "share_of_time": 1.0,  # trains for a part of the time, with the whole schedule in it
}

# recipe="fast", which a test compares with the package's
FAST = {"encoder_auxiliary_loss": True, "class_head_rate": 10.0, "averages": True}
FAST_DENOISING = {**FAST, "denoising_queries": 3}

CONTESTANTS: dict[str, dict] = {
    # transformers' object-detection example and guide: AdamW 5e-5 for everything, gradients clipped at 0.01
    "stock-example": {"package": "stock", "auxiliary_loss": False, "example_recipe": True},
    "stock-example-auxiliary": {"package": "stock", "example_recipe": True},
    # stock's model with the optimizer the others have: far better than the example's
    "stock": {"package": "stock", "auxiliary_loss": False},
    "stock-auxiliary": {"package": "stock"},
    "stock-restored": {"package": "stock", "auxiliary_loss": False, "restored": True},
    "stock-restored-auxiliary": {"package": "stock", "restored": True},
    "paper": {},
    "fast": FAST,
    "fast-third": {**FAST, "share_of_time": 1 / 3},
    # one training-only part at a time
    "average": {"averages": True},
    "class-head-rate": {"class_head_rate": 10.0},
    "encoder": {"encoder_auxiliary_loss": True},
    "denoising": {"denoising_queries": 3},
    "groups": {"query_groups": 3},
    # what may be added to "fast", one at a time
    "fast-denoising": FAST_DENOISING,
    "fast-denoising-1": {**FAST, "denoising_queries": 1},
    "fast-denoising-6": {**FAST, "denoising_queries": 6},
    "fast-denoising-box-noise": {**FAST_DENOISING, "denoising_box_noise": 0.8},
    "fast-denoising-groups": {**FAST_DENOISING, "query_groups": 2},
    "fast-denoising-rate-2": {**FAST_DENOISING, "rate": 2.0},
    "fast-denoising-rate-half": {**FAST_DENOISING, "rate": 0.5},
    "fast-denoising-one-cycle": {**FAST_DENOISING, "schedule": "one-cycle", "rate": 2.0},
    "fast-denoising-step": {**FAST_DENOISING, "schedule": "step"},
    "fast-denoising-batch-half": {**FAST_DENOISING, "batch": 0.5},
    "fast-denoising-clip": {**FAST_DENOISING, "clip": 0.1},
    "fast-denoising-head-rate-3": {**FAST_DENOISING, "class_head_rate": 3.0},
    "fast-denoising-augment-paper": {**FAST_DENOISING, "augment": "paper"},
    "fast-denoising-augment-strong": {**FAST_DENOISING, "augment": "strong"},
    "paper-rate-half": {"rate": 0.5},
    "fast-rate-half": {**FAST, "rate": 0.5},
}


def settings_of(name: str) -> dict:
    """All settings of a contestant, by name. Raises ValueError for an unknown one."""
    if name not in CONTESTANTS:
        raise ValueError(f"There is no contestant {name!r}; there are {', '.join(CONTESTANTS)}.")
    return {**DEFAULTS, **CONTESTANTS[name]}


def make_model(start: Path, settings: dict) -> nn.Module:
    """The contestant's model with the weights of the folder `start`, in training mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if settings["package"] == "stock":
            model = transformers.DetrForObjectDetection.from_pretrained(
                start, auxiliary_loss=settings["auxiliary_loss"], attn_implementation="sdpa"
            )
            if not hf_detr.DetrConfig.from_pretrained(start).freeze_backbone_norms:
                _thaw_norms(model)  # stock freezes every norm, also those of random weights, which then never learn
            if settings["restored"]:
                _put_activations_back(model)
            return model.train()
        fields = hf_detr.DetrConfig.from_pretrained(start).to_dict().keys() & settings.keys()
        return hf_detr.DetrForObjectDetection.from_pretrained(start, **{f: settings[f] for f in fields}).train()


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
    if settings["example_recipe"]:
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-4, fused=True)
    rates = {"class_labels_classifier": rate * settings["class_head_rate"], "backbone": backbone_rate, "": rate}
    groups = {part: {"params": [], "lr": part_rate} for part, part_rate in rates.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next((part for part in rates if part in name.split(".")), "")]["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), weight_decay=1e-4, fused=True)
