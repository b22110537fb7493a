"""Checkpoints of the original DETR (facebookresearch/detr): `detr-r50-e632da11.pth` and what its training writes.

The names differ, and the original packs the three projections of an attention into one matrix. Sizes are read from
the tensors. What the tensors cannot tell is taken from the training arguments in the file, where there are any, or
from the file's name: dilation ("dc5") and the number of heads (8 in all published files).
"""

import argparse
import re
import warnings
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..configuration_detr import DetrConfig
from .coco_labels import COCO_ID2LABEL, COCO_PANOPTIC_ID2LABEL, COCO_STUFF

# The original's names -> ours, the first that matches; applied to whole names from the left.
_RENAMES = (
    (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
    (r"^backbone\.1\.row_embed\.", "model.position_embedding.row_embeddings."),
    (r"^backbone\.1\.col_embed\.", "model.position_embedding.column_embeddings."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"^transformer\.", "model."),
)
# Inside a layer; the second norm of a decoder layer belongs to the cross-attention, an encoder layer's is its last.
_LAYER_RENAMES = (
    (r"\.linear1\.", ".fc1."),
    (r"\.linear2\.", ".fc2."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"(\.decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"(\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
    (r"\.multihead_attn\.", ".encoder_attn."),
)
_RESNETS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def load_original(
    path: str | PathLike, config: DetrConfig | None = None, with_masks: bool = False
) -> tuple[DetrConfig, dict[str, Tensor]]:
    """Reads a `.pth` of the original: the configuration it needs, and its weights under this package's names.

    Only tensors and plain values are unpickled (`weights_only=True`). `with_masks`: for `DetrForSegmentation`, whose
    loss then counts padding as the original's does, unless `config` says otherwise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of the original, or one whose configuration has to be given.
    """
    path = Path(path)
    weights, arguments = _read(path)
    detector, mask_head = _parts(weights, path)
    if with_masks and not mask_head:
        raise ValueError(
            f"{path}: the checkpoint of a detector, without a mask head; convert it by DetrForObjectDetection, and "
            "start masks from it by DetrForSegmentation.from_detector."
        )
    if mask_head and not with_masks:
        dropped = ", ".join(sorted({name.split(".")[0] for name in mask_head}))
        warnings.warn(f"{path}: a segmentation checkpoint; its detector is taken, {dropped} are left out.")
    config = config or _read_config(detector, arguments, path, with_masks)
    converted = convert_names(detector)
    if with_masks:  # the mask head's names are the original's
        converted = {**{f"detr.{name}": tensor for name, tensor in converted.items()}, **mask_head}
    return config, converted


def has_masks(path: str | PathLike) -> bool:
    """Whether a `.pth` of the original is of a segmentation model. Errors as for `load_original`."""
    weights, _ = _read(Path(path))
    return any(name.startswith("mask_head.") for name in weights)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights under the original's names, and the arguments of the training, where the file has them."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; give the .pth of the original DETR.")
    with torch.serialization.safe_globals([argparse.Namespace]):  # training writes its arguments beside the weights
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if isinstance(error, UnpicklingError):
                reason = "it is no archive, or holds objects that would run code"
            raise ValueError(
                f"{path}: not a file of tensors written by torch.save ({reason}); copy or download it again."
            ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: holds a {type(checkpoint).__name__}, no dict; give the .pth of the original DETR.")
    weights = checkpoint.get("model", checkpoint)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items() if name != "args"
    ):
        raise ValueError(f"{path}: what is under 'model' are no named tensors; give the .pth of the original DETR.")
    arguments = vars(checkpoint["args"]) if isinstance(checkpoint.get("args"), argparse.Namespace) else {}
    return weights, arguments


def convert_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's state dict under this package's names; packed projections are cut into their three parts."""
    converted: dict[str, Tensor] = {}
    for original_name, tensor in weights.items():
        if original_name.endswith("num_batches_tracked"):
            continue
        name = original_name
        for pattern, replacement in _RENAMES:
            name, found = re.subn(pattern, replacement, name)
            if found:
                break
        if name.startswith(("model.encoder.", "model.decoder.")):
            for pattern, replacement in _LAYER_RENAMES:
                name = re.sub(pattern, replacement, name)
        packed = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name)
        if packed:
            for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                converted[f"{packed[1]}{part}.{packed[2]}"] = third.clone()
        else:
            converted[name] = tensor
    return converted


def _parts(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A detector's weights, and what a segmentation model has as well."""
    mask_head = {}
    if any(name.startswith("detr.") for name in weights):
        mask_head = {name: tensor for name, tensor in weights.items() if not name.startswith("detr.")}
        weights = {name.removeprefix("detr."): tensor for name, tensor in weights.items() if name.startswith("detr.")}
    needed = ("input_proj.weight", "query_embed.weight", "class_embed.weight", "transformer.decoder.norm.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(
            f"{path}: not a checkpoint of the original DETR, it has no {', '.join(missing)}. Checkpoints of "
            "transformers are loaded with from_pretrained."
        )
    return weights, mask_head


def _read_config(weights: dict[str, Tensor], arguments: dict[str, Any], path: Path, with_masks: bool) -> DetrConfig:
    if arguments.get("pre_norm"):
        raise ValueError(f"{path}: trained with --pre_norm, an architecture that DetrConfig does not describe.")
    d_model = weights["input_proj.weight"].shape[0]
    num_labels = weights["class_embed.weight"].shape[0] - 1
    heads = arguments.get("nheads", 8)
    dropout = arguments.get("dropout", 0.1)
    names = next((one for one in (COCO_ID2LABEL, COCO_PANOPTIC_ID2LABEL) if len(one) == num_labels), None)
    try:
        return DetrConfig(
            backbone=_read_backbone(weights, path),
            dilation=arguments.get("dilation", "dc5" in path.stem.lower()),
            d_model=d_model,
            num_queries=weights["query_embed.weight"].shape[0],
            encoder_layers=_count_layers(weights, "encoder"),
            decoder_layers=_count_layers(weights, "decoder"),
            encoder_ffn_dim=_ffn_dim(weights, "encoder"),
            decoder_ffn_dim=_ffn_dim(weights, "decoder"),
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            position_embedding_type="learned" if "backbone.1.row_embed.weight" in weights else "sine",
            id2label=names or {index: f"LABEL_{index}" for index in range(num_labels)},
            mask_loss_on_padding=with_masks,
            label_ids_to_fuse=COCO_STUFF if with_masks and names is COCO_PANOPTIC_ID2LABEL else None,
        )
    except ValueError as error:
        raise ValueError(
            f"{path}: its sizes make no DETR with {heads} heads; pass config=DetrConfig(...). {error}"
        ) from error


def _read_backbone(weights: dict[str, Tensor], path: Path) -> str:
    prefix = "backbone.0.body."
    blocks = [
        len({name.split(".")[4] for name in weights if name.startswith(f"{prefix}layer{stage}.")})
        for stage in range(1, 5)
    ]
    has_bottlenecks = f"{prefix}layer1.0.conv3.weight" in weights
    name = _RESNETS.get((has_bottlenecks, tuple(blocks)))
    if name is None:
        raise ValueError(
            f"{path}: its backbone has stages of {blocks} blocks, which is no ResNet-18, 34, 50, 101 or 152; pass "
            "config=DetrConfig(backbone=...)."
        )
    return name


def _count_layers(weights: dict[str, Tensor], part: str) -> int:
    return len({name.split(".")[3] for name in weights if name.startswith(f"transformer.{part}.layers.")})


def _ffn_dim(weights: dict[str, Tensor], part: str) -> int:
    first = weights.get(f"transformer.{part}.layers.0.linear1.weight")
    return 2048 if first is None else first.shape[0]
