"""The contestants: a dict of settings each, and the models and optimizers these make from the same weights."""

import warnings
from pathlib import Path

import timm
import torch
import transformers
from torch import nn

import hf_detr
from hf_detr.training.muon import MuonAdamW

from .one_to_many import OneToManyDetr, start_one_to_many
from .variants import start_with_local_attention

# What a contestant may set; whatever is left out is as here.
DEFAULTS = {
    "package": "hf_detr",  # or "stock", transformers' own model
    "auxiliary_loss": True,
    "denoising_queries": 0,
    "denoising_box_noise": 0.4,
    "denoising_label_noise": 0.2,
    "query_groups": 1,
    "encoder_auxiliary_loss": False,
    "iou_aware_classification": False,
    "freeze_backbone_until": None,  # as the start has it, as are the next two
    "dropout": None,  # in all three places
    "num_queries": None,
    "local_start": 0.0,  # the gain; see `variants`
    "averages": False,  # the moving average of recipe="fast"
    "class_head_rate": 1.0,  # times the transformer's learning rate
    "rate": 1.0,  # times the learning rates of the case
    "batch": 1.0,  # times the batch size of the case
    "small_share": 0.0,  # of the clock, in which images are `small_scale` times as large
    "small_scale": 2 / 3,
    "frozen_share": 0.0,  # of the clock, in which the backbone does not train
    "clip": 1.0,  # the gradients' largest norm
    "beta2": 0.999,  # of AdamW
    "muon": False,  # for the matrices of the transformer, with the rate of AdamW
    "mixed_precision": True,  # where the case has it
    "schedule": "cosine",  # of `one_run.rate_at`
    "augment": "none",  # but for flips; or "paper" or "strong", of `DetectionTransform`, for cases with rows
    "example_recipe": False,  # the optimizer of transformers' example and guide
    "restored": False,  # stock, with the activations in the backbone's norms that it drops
    "teacher": "",  # how the queries of --teacher's detector are those of the student, see `Lessons`; its time counts
    "teacher_weight": 1.0,  # of the loss of what it says
    "one_to_many": "",  # or "dac", "ms" or "hybrid", see `one_to_many`, which the next five are for
    "many_share": 1.0,  # of the clock, from its start, in which it is done
    "many_k": 6,  # queries that an object has at most
    "many_iou_share": 0.7,  # of a query's quality; the rest is the class's probability
    "many_threshold": 0.4,  # of that quality
    "many_weight": 1.0,  # of its loss
    "share_of_time": 1.0,  # trains for a part of the time, with the whole schedule in it
}

# The settings that are fields of the package's configuration; the last three make training-only modules.
FIELDS = (
    "auxiliary_loss", "denoising_box_noise", "denoising_label_noise", "iou_aware_classification", "query_groups",
    "denoising_queries", "encoder_auxiliary_loss",
)  # fmt: skip
# the places of the paper's one dropout
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")

# recipe="fast", which a test compares with the package's
FAST = {
    "encoder_auxiliary_loss": True,
    "iou_aware_classification": True,
    "muon": True,
    "class_head_rate": 10.0,
    "averages": True,
}
# what the first round of the search for it started from
BASE = {**FAST, "denoising_queries": 3, "iou_aware_classification": False, "muon": False}
# smaller images for a part of the clock, and batches of half the size
FAST_SMALL = {**FAST, "small_share": 0.6, "batch": 0.5}

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
    "paper-rate-half": {"rate": 0.5},
    "fast": FAST,
    "fast-third": {**FAST, "share_of_time": 1 / 3},
    "fast-fifth": {**FAST, "share_of_time": 0.2},
    # one part of it at a time
    "denoising": {"denoising_queries": 3},
    "encoder": {"encoder_auxiliary_loss": True},
    "iou-aware": {"iou_aware_classification": True},
    "muon": {"muon": True},
    "class-head-rate": {"class_head_rate": 10.0},
    "average": {"averages": True},
    "groups": {"query_groups": 3},
    # all but one
    "fast-without-encoder": {**FAST, "encoder_auxiliary_loss": False},
    "fast-without-iou-aware": {**FAST, "iou_aware_classification": False},
    "fast-without-muon": {**FAST, "muon": False},
    "fast-without-class-head-rate": {**FAST, "class_head_rate": 1.0},
    "fast-without-average": {**FAST, "averages": False},
    # other numbers
    "fast-denoising-1": {**FAST, "denoising_queries": 1},
    "fast-denoising-6": {**FAST, "denoising_queries": 6},
    "fast-box-noise": {**FAST, "denoising_queries": 3, "denoising_box_noise": 0.8},
    "fast-groups": {**FAST, "query_groups": 2},
    "fast-rate-2": {**FAST, "rate": 2.0},
    "fast-rate-4": {**FAST, "rate": 4.0},
    "fast-rate-2-head-rate-3": {**FAST, "rate": 2.0, "class_head_rate": 3.0},
    "fast-rate-half": {**FAST, "rate": 0.5},
    "fast-one-cycle": {**FAST, "schedule": "one-cycle", "rate": 2.0},
    "fast-step": {**FAST, "schedule": "step"},
    "fast-dropout": {**FAST, "dropout": 0.1},
    "fast-queries-20": {**FAST, "num_queries": 20},
    "fast-clip": {**FAST, "clip": 0.1},
    "fast-head-rate-3": {**FAST, "class_head_rate": 3.0},
    "fast-progressive": {**FAST, "small_share": 0.6},
    "fast-progressive-batch-half": FAST_SMALL,
    "fast-progressive-half-batch-half": {**FAST_SMALL, "small_scale": 0.5},
    "fast-progressive-batch-quarter": {**FAST_SMALL, "batch": 0.25},
    "fast-progressive-batch-half-rate-2": {**FAST_SMALL, "rate": 2.0},
    "fast-progressive-batch-half-thaw": {**FAST_SMALL, "frozen_share": 0.6},
    "fast-progressive-batch-half-frozen": {**FAST_SMALL, "freeze_backbone_until": "all"},
    "fast-progressive-batch-half-strong": {**FAST_SMALL, "augment": "strong"},
    "fast-frozen-backbone": {**FAST, "freeze_backbone_until": "all"},
    "fast-augment-paper": {**FAST, "augment": "paper"},
    "fast-augment-strong": {**FAST, "augment": "strong"},
    "fast-batch-half": {**FAST, "batch": 0.5},
    "fast-batch-half-rate-2": {**FAST, "batch": 0.5, "rate": 2.0},
    "fast-batch-half-paper": {**FAST, "batch": 0.5, "augment": "paper"},
    "fast-batch-half-strong": {**FAST, "batch": 0.5, "augment": "strong"},
    "fast-batch-half-frozen": {**FAST, "batch": 0.5, "freeze_backbone_until": "all"},
    "fast-batch-quarter": {**FAST, "batch": 0.25},
    # with the detector of --teacher
    "fast-teacher-matched": {**FAST, "teacher": "matched"},
    "fast-teacher-by-query": {**FAST, "teacher": "by query"},
    "fast-batch-half-teacher-matched": {**FAST, "batch": 0.5, "teacher": "matched"},
    "fast-batch-half-teacher-by-query": {**FAST, "batch": 0.5, "teacher": "by query"},
    "fast-batch-half-teacher-weight-3": {**FAST, "batch": 0.5, "teacher": "by query", "teacher_weight": 3.0},
    "fast-batch-half-paper-teacher-by-query": {**FAST, "batch": 0.5, "augment": "paper", "teacher": "by query"},
    "fast-batch-half-strong-teacher-by-query": {**FAST, "batch": 0.5, "augment": "strong", "teacher": "by query"},
    # several queries for an object
    "fast-dac": {**FAST, "one_to_many": "dac"},
    "fast-ms": {**FAST, "one_to_many": "ms"},
    "fast-dac-low": {**FAST, "one_to_many": "dac", "many_threshold": 0.2, "many_k": 3},
    "fast-ms-low": {**FAST, "one_to_many": "ms", "many_threshold": 0.2, "many_k": 3},
    "fast-hybrid": {**FAST, "one_to_many": "hybrid", "many_k": 2, "many_share": 0.3},
    "paper-batch-half": {"batch": 0.5, "rate": 0.5},
    # the first round
    "base": BASE,
    "base-iou-aware": {**BASE, "iou_aware_classification": True},
    "base-muon": {**BASE, "muon": True},
    "base-progressive": {**BASE, "small_share": 0.6},
    "base-batch-half": {**BASE, "batch": 0.5},
    "base-clip": {**BASE, "clip": 0.1},
    "base-beta2": {**BASE, "beta2": 0.98},
    "base-fp32": {**BASE, "mixed_precision": False},
    "base-local-start": {**BASE, "local_start": 2.0},
}

# each with three noised copies of each object as well, which `fast` had until it was measured without
CONTESTANTS |= {
    name.replace("fast", "fast-dn", 1): {**settings, "denoising_queries": 3}
    for name, settings in CONTESTANTS.items()
    if name.startswith("fast") and "denoising_queries" not in settings
}
# and each with the schedule of `hf-detr train`
CONTESTANTS |= {
    f"{name}-drop": {**settings, "schedule": "drop"}
    for name, settings in CONTESTANTS.items()
    if "schedule" not in settings
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
        fields = {field: settings[field] for field in FIELDS}
        if settings["freeze_backbone_until"] is not None:
            fields["freeze_backbone_until"] = settings["freeze_backbone_until"]
        if settings["dropout"] is not None:
            fields |= dict.fromkeys(DROPOUTS, settings["dropout"])
        model_class = OneToManyDetr if settings["one_to_many"] else hf_detr.DetrForObjectDetection
        model = model_class.from_pretrained(start, **fields).train()
        if (model.training_only is None) == any(settings[f] != DEFAULTS[f] for f in FIELDS[-3:]):
            raise RuntimeError(f"{settings} and {model.training_only} do not agree.")
        if settings["num_queries"]:
            model.resize_queries(settings["num_queries"])
        if settings["local_start"]:
            start_with_local_attention(model, settings["local_start"])
        if settings["one_to_many"]:
            start_one_to_many(model, settings)
        return model


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
    """AdamW, weight decay 1e-4: `rate` for all but the backbone, `backbone_rate` for that. With "muon", Muon for the
    matrices of the transformer."""
    if settings["example_recipe"]:
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-4, fused=True)
    rates = {"class_labels_classifier": rate * settings["class_head_rate"], "backbone": backbone_rate, "": rate}
    groups = {part: {"params": [], "lr": part_rate} for part, part_rate in rates.items()}
    matrices = {"params": [], "lr": rate, "orthogonal": True}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path = name.split(".")
        if settings["muon"] and parameter.ndim == 2 and "layers" in path and {"encoder", "decoder"} & set(path):
            matrices["params"].append(parameter)
        else:
            groups[next((part for part in rates if part in path), "")]["params"].append(parameter)
    if settings["muon"]:
        return MuonAdamW([*groups.values(), matrices], weight_decay=1e-4, betas=(0.9, settings["beta2"]))
    return torch.optim.AdamW(list(groups.values()), weight_decay=1e-4, betas=(0.9, settings["beta2"]), fused=True)
