"""This package, stock transformers and the original, built from one checkpoint, with one face.

The checkpoint is a folder that this package saved. Stock reads the same file; the original's packed projections are
put together from it. Nothing is fetched.
"""

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_detr import DetrConfig, DetrForObjectDetection
from hf_detr.checkpoints.original import convert_names
from inputs import NUM_CLASSES, fill_as_trained

Stock = transformers.DetrForObjectDetection

# Of the smoke test: everything runs, and no number means anything.
SMALL = {
    "backbone": "resnet18",
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 20,
}


def write_checkpoint(folder: Path, small: bool = False, **changes) -> Path:
    """The published ResNet-50 DETR in size, with random weights; `small` for the smoke test."""
    fields = {**(SMALL if small else {"backbone": "resnet50"}), **changes}
    config = DetrConfig(use_pretrained_backbone=False, num_labels=NUM_CLASSES, **fields)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone starts from random weights")
        model = DetrForObjectDetection(config)
    fill_as_trained(model)
    model.save_pretrained(folder)
    return folder


def ours(folder: Path, device: torch.device, **changes) -> DetrForObjectDetection:
    """This package's model with its defaults, `changes` of its configuration aside; in eval mode."""
    return DetrForObjectDetection.from_pretrained(folder, **changes).to(device)


def stock(folder: Path, device: torch.device, stem_frozen: bool = False, **changes) -> nn.Module:
    """Stock transformers' model with the defaults of its own configuration; in eval mode.

    With a timm backbone stock freezes nothing; `stem_frozen` freezes what the paper does.
    """
    # the file holds this package's
    fields = ("dropout", "attention_dropout", "activation_dropout", "auxiliary_loss")
    defaults = {field: getattr(transformers.DetrConfig, field) for field in fields}
    model = Stock.from_pretrained(folder, **{**defaults, **changes})
    if stem_frozen:
        for name, parameter in model.named_parameters():
            if "backbone" in name and not any(f".layer{stage}." in name for stage in (2, 3, 4)):
                parameter.requires_grad_(False)
    return model.to(device)


class Original:
    """facebookresearch/detr from its checkout.

    Attributes:
        post_processor: its class that turns outputs into boxes.
    """

    def __init__(self, checkout: Path):
        if not (checkout / "models" / "detr.py").is_file():
            raise ValueError(f"{checkout}: expected a checkout of facebookresearch/detr, found no models/detr.py.")
        self._checkout = checkout
        self._models, backbone, detr = _import_from(checkout, "models", "models.backbone", "models.detr")
        backbone.is_main_process = lambda: False  # the main process would fetch the backbone's published weights
        self.post_processor = detr.PostProcess

    def pictures(self) -> tuple[ModuleType, ...]:
        """Its modules `datasets.transforms` and `datasets.coco`, which need pycocotools."""
        return _import_from(self._checkout, "datasets.transforms", "datasets.coco")

    def build(self, folder: Path, device: torch.device, dropout: float | None = None) -> tuple[nn.Module, nn.Module]:
        config = json.loads((folder / "config.json").read_text())
        arguments = argparse.Namespace(
            backbone=config["backbone_config"]["backbone"],
            lr_backbone=1e-5,
            masks=False,
            frozen_weights=None,
            dilation=False,
            position_embedding="sine",
            hidden_dim=config["d_model"],
            nheads=config["encoder_attention_heads"],
            enc_layers=config["encoder_layers"],
            dec_layers=config["decoder_layers"],
            dim_feedforward=config["encoder_ffn_dim"],
            dropout=0.1 if dropout is None else dropout,
            pre_norm=False,
            num_queries=config["num_queries"],
            aux_loss=True,
            dataset_file="coco",  # 91 classes
            device=str(device),
            set_cost_class=1,
            set_cost_bbox=5,
            set_cost_giou=2,
            bbox_loss_coef=5,
            giou_loss_coef=2,
            eos_coef=0.1,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old arguments of torchvision
            model, criterion, _ = self._models.build_model(arguments)
        weights = load_file(folder / "model.safetensors")
        packed = {}
        for name, tensor in model.state_dict().items():
            parts = list(convert_names({name: tensor}))  # one, or the three of a packed projection
            packed[name] = torch.cat([weights[part] for part in parts])
        model.load_state_dict(packed)
        return model.to(device).eval(), criterion

    def nested(self, pixel_values: Tensor, pixel_mask: Tensor | None = None):
        """Its batch: images, and a mask that is True on padding."""
        padding = torch.zeros_like(pixel_values[:, 0], dtype=torch.bool) if pixel_mask is None else pixel_mask == 0
        return importlib.import_module("util.misc").NestedTensor(pixel_values, padding)

    @staticmethod
    def targets(labels: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Our label dicts under its names."""
        return [{"labels": label["class_labels"], "boxes": label["boxes"]} for label in labels]

    @staticmethod
    def total_loss(criterion: nn.Module, losses: dict[str, Tensor]) -> Tensor:
        """As its training loop adds them up."""
        return sum(losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses)


def _import_from(checkout: Path, *names: str) -> tuple[ModuleType, ...]:
    """Its modules bear names that others bear too (`datasets`): they are imported with the others out of sight."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_datasets(name)}
    sys.path.insert(0, str(checkout))
    try:
        return tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if _is_datasets(name)]:
            del sys.modules[name]
        sys.modules.update(others)


def _is_datasets(module_name: str) -> bool:
    return module_name == "datasets" or module_name.startswith("datasets.")


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all: what the Trainer of transformers takes by default, with steps too small to change the work."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-7, weight_decay=1e-4, fused=True)


def training_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, loss, backward and the optimizer's step, in training mode."""
    model.train()
    optimizer = optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()

    return step
