"""What a model card says of a model: the facts that follow from the model alone, made in one place."""

import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import metadata_load
from transformers import PreTrainedModel

from .. import __version__
from ..data.verification import cache_folder
from ..evaluation.tasks import task_of
from .imagenet import FOLDER_PREFIX
from .stock_check import StockCheck, check_in_stock
from .tiny import tiny_checkpoint


def card_facts(
    model: PreTrainedModel, name: str, repo_id: str | None = None, stock: StockCheck | None = None, **further: Any
) -> dict[str, Any]:
    """The facts for `model_card`, with `further` ones. Unless `stock` is given, the model is run in stock transformers.

    `name`: "user/name" on the Hub, or a title; `repo_id` is by default the same.
    """
    config = model.config
    return {
        "task": task_of(model),
        "name": name.split("/")[-1],
        "repo_id": repo_id or name,
        "stock": stock or check_in_stock(model),
        "classes": list(config.id2label.values()),
        "model": {
            "backbone": backbone_name(model),
            "encoder and decoder layers": f"{config.encoder_layers} + {config.decoder_layers}",
            "width": config.d_model,
            "queries": config.num_queries,
            "parameters": f"{model.num_parameters():,}",
        },
        "versions": versions(),
        **further,
    }


def backbone_name(model: PreTrainedModel) -> str:
    """timm's name, or the model type of a transformers backbone."""
    backbone = model.config.backbone_config
    return getattr(backbone, "backbone", None) or backbone.model_type


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "hf_detr": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }


def base_of(checkpoint: str | None) -> tuple[str | None, str]:
    """Where a training started -> its name on the Hub, if known, and words that name no folder of this machine.

    Of a folder, the card in it is asked.
    """
    if not checkpoint:
        return None, "random weights"
    folder = Path(checkpoint)
    if not folder.exists():
        # a path that is gone is no name of the Hub
        return (checkpoint, checkpoint) if _is_hub_name(checkpoint) else (None, "a local checkpoint")
    if folder.resolve() == Path(tiny_checkpoint()).resolve():
        return None, "the tiny checkpoint of hf_detr"
    if folder.name.startswith(FOLDER_PREFIX) and folder.resolve().parent == cache_folder().resolve():
        return None, "EfficientNet-Lite0 of ImageNet and a transformer of hf_detr, trained on generated scenes"
    try:
        base = (metadata_load(folder / "README.md") or {}).get("base_model")
    except Exception:  # no card, or none that can be read
        base = None
    base = base[0] if isinstance(base, list) and base else base
    if isinstance(base, str) and _is_hub_name(base) and not Path(base).exists():
        return base, f"a local checkpoint, fine-tuned from {base}"
    return None, "a local checkpoint"


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
