"""This package, stock transformers and the original, built from one checkpoint, called alike.

The checkpoint is a folder that this package saved. Stock reads the same file; the original's packed projections are
put together from it. Nothing is fetched.
"""

import argparse
import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from hf_detr.checkpoints.original import convert_names
from inputs import NUM_CLASSES, fill_as_trained

if TYPE_CHECKING:
    from cases import Bench

# of a quick run
_SMALL = {"backbone": "resnet18", "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 20}
_SMALL |= {f"{part}_attention_heads": 8 for part in ("encoder", "decoder")}
_SMALL |= {f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")}


def write_checkpoint(folder: Path, small: bool = False, model_class: type[nn.Module] = DetrForObjectDetection) -> Path:
    """The published ResNet-50 DETR in size, with random weights; `small` for a quick run."""
    fields = _SMALL if small else {"backbone": "resnet50"}
    if small and model_class is DetrForSegmentation:
        fields = {**_SMALL, "backbone": "resnet50", "d_model": 128}  # the least that the original's mask head takes
    config = DetrConfig(use_pretrained_backbone=False, num_labels=NUM_CLASSES, **fields)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone starts from random weights")
        model = model_class(config)
    fill_as_trained(model)
    model.save_pretrained(folder)
    return folder


def bf16_tolerance(bench: "Bench") -> float:
    """Eight bits of mantissa through a hundred layers: what logits of size 1 to 5 were seen to lose, times three."""
    return 2.0 if bench.quick else 0.3


def _mask_checkpoint(bench: "Bench") -> Path:
    """The same with a mask head, in a folder inside the bench's; written once."""
    folder = bench.checkpoint / "masks"
    return folder if folder.exists() else write_checkpoint(folder, bench.quick, DetrForSegmentation)


def load_model(name: str, bench: "Bench", stem_frozen: bool = False, with_masks: bool = False, **changes) -> nn.Module:
    """The model of the package that `name` begins with (ours, stock, original), in eval mode, with the weights of the
    bench; `changes` are fields of the configuration.

    All are called with pixel_values, pixel_mask and labels, and give logits, pred_boxes, loss and loss_dict. Ours and
    stock have the defaults of their own configurations. `stem_frozen`: what the paper freezes and stock does not.
    `with_masks`: the segmentation models, which give pred_masks as well.
    """
    folder = _mask_checkpoint(bench) if with_masks else bench.checkpoint
    if name.startswith("original"):
        model = bench.original.build(folder, changes.get("dropout", 0.1), with_masks)
    elif name.startswith("ours"):
        model = (DetrForSegmentation if with_masks else DetrForObjectDetection).from_pretrained(folder, **changes)
    else:
        fields = ("dropout", "attention_dropout", "activation_dropout", "auxiliary_loss")
        defaults = {field: getattr(transformers.DetrConfig, field) for field in fields}  # the file has this package's
        model_class = transformers.DetrForSegmentation if with_masks else transformers.DetrForObjectDetection
        model = model_class.from_pretrained(folder, **{**defaults, **changes})
        for parameter_name, parameter in model.named_parameters() if stem_frozen else ():
            if "backbone" in parameter_name and not re.search(r"[.]layer[234][.]", parameter_name):
                parameter.requires_grad_(False)
    return model.to(bench.device).eval()


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

    def datasets(self) -> tuple[ModuleType, ...]:
        """Its modules `datasets.transforms` and `datasets.coco`, which need pycocotools."""
        return _import_from(self._checkout, "datasets.transforms", "datasets.coco")

    def build(self, folder: Path, dropout: float, with_masks: bool = False) -> "OriginalModel":
        config = json.loads((folder / "config.json").read_text())
        arguments = argparse.Namespace(
            **_ORIGINAL_ARGUMENTS,
            masks=with_masks,
            backbone=config["backbone_config"]["backbone"],
            hidden_dim=config["d_model"],
            nheads=config["encoder_attention_heads"],
            enc_layers=config["encoder_layers"],
            dec_layers=config["decoder_layers"],
            dim_feedforward=config["encoder_ffn_dim"],
            dropout=dropout,
            num_queries=config["num_queries"],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old arguments of torchvision
            model, criterion, _ = self._models.build_model(arguments)
        weights = load_file(folder / "model.safetensors")
        packed = {}
        for name, tensor in model.state_dict().items():
            prefix = "detr." if name.startswith("detr.") else ""
            parts = convert_names({name.removeprefix(prefix): tensor})  # one, or the three of a packed projection
            packed[name] = torch.cat([weights[prefix + part] for part in parts])
        model.load_state_dict(packed)
        return OriginalModel(model, criterion)


# of its command line: its defaults, the published R50 model, COCO's 91 classes
_ORIGINAL_ARGUMENTS = {"lr_backbone": 1e-5, "frozen_weights": None, "dilation": False}
_ORIGINAL_ARGUMENTS |= {"position_embedding": "sine", "pre_norm": False, "aux_loss": True, "dataset_file": "coco"}
_ORIGINAL_ARGUMENTS |= {"device": "cpu", "set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2}
_ORIGINAL_ARGUMENTS |= {"bbox_loss_coef": 5, "giou_loss_coef": 2, "eos_coef": 0.1}
_ORIGINAL_ARGUMENTS |= {"mask_loss_coef": 1, "dice_loss_coef": 1}


class OriginalModel(nn.Module):
    """The original's model and criterion, called as ours are."""

    def __init__(self, model: nn.Module, criterion: nn.Module):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: list | None = None):
        # its mask is True on padding
        padding = torch.zeros_like(pixel_values[:, 0], dtype=torch.bool) if pixel_mask is None else pixel_mask == 0
        outputs = self.model(importlib.import_module("util.misc").NestedTensor(pixel_values, padding))
        loss, losses = (None, None) if labels is None else self.losses(outputs, labels)
        predictions = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
        predictions["pred_masks"] = outputs.get("pred_masks")
        return SimpleNamespace(**predictions, loss=loss, loss_dict=losses)

    def losses(self, outputs: dict, labels: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Their sum as its training loop takes it, and each."""
        losses = self.criterion(outputs, [{**label, "labels": label["class_labels"]} for label in labels])
        weights = self.criterion.weight_dict
        return sum(losses[name] * weight for name, weight in weights.items() if name in losses), losses


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


def training_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, loss, backward and AdamW's step, in training mode.

    The optimizer is the same for all: PyTorch's fused one, which the Trainer of transformers takes by default, with
    steps too small to change the work.
    """
    trained = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-7, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()

    return step
