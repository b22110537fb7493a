"""The data sets on which convergence is measured, all of them prepared in memory, and the weights everyone starts from.

digits: generated scenes of handwritten digits, 96 px, from random weights.
shapes: generated scenes of drawn shapes, 96 px, from the small checkpoint of this package.
bccd:   real photographs of blood cells, from an ImageNet backbone and what else examples/start_from_efficientnet.py
        made: by default the transformer of the small checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor, load_detection_dataset
from hf_detr.data.schema import id2label


@dataclass
class Case:
    """A data set to train and to test on, and how.

    Attributes:
        pixels: (N, C, H, W) float16, normalised; labels: one dict an image.
        test: rows of the schema, which `processor` prepares.
        flip: mirror every second picture, at random.
    """

    pixels: torch.Tensor
    labels: list[dict[str, torch.Tensor]]
    test: Dataset
    processor: DetrImageProcessor
    batch_size: int
    rate: float
    backbone_rate: float
    flip: bool


def load_case(name: str, data: Path | None, start: Path, seed: int, make_start: bool) -> Case:
    """The case called `name`. With `make_start` the weights everyone starts from are written to the folder `start`."""
    return {"digits": _digits, "shapes": _shapes, "bccd": _bccd}[name](data, start, seed, make_start)


def _digits(data: Path | None, start: Path, seed: int, make_start: bool) -> Case:
    from hf_detr.data.digits import digit_scenes

    train, test = digit_scenes(6_000, 96), digit_scenes(200, 96, seed=1, split="test")
    processor = DetrImageProcessor(size={"height": 96, "width": 96})
    if make_start:
        _save_fresh(start, seed, processor, _small_config(id2label(train)))
    return Case(*_prepare(processor, train), test, processor, 16, 1e-3, 1e-3, flip=False)


def _shapes(data: Path | None, start: Path, seed: int, make_start: bool) -> Case:
    from hf_detr import tiny_checkpoint
    from hf_detr.data.shapes import shape_scenes

    train, test = shape_scenes(2_000, 96), shape_scenes(200, 96, seed=1, split="test")
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    if make_start:
        torch.manual_seed(seed)
        model = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=id2label(train))
        model.save_pretrained(start)
        processor.save_pretrained(start)
    return Case(*_prepare(processor, train), test, processor, 16, 5e-4, 5e-4, flip=False)


def _bccd(data: Path | None, start: Path, seed: int, make_start: bool) -> Case:
    """`data` is the folder of the photographs; `start` must have been made by examples/start_from_efficientnet.py."""
    if data is None:
        raise ValueError("bccd needs --data DIR, the folder with its ImageSets.")
    splits = load_detection_dataset(data, format="voc", on_bad_box="drop")
    processor = DetrImageProcessor.from_pretrained(start)
    return Case(*_prepare(processor, splits["train"]), splits["test"], processor, 8, 5e-4, 1e-4, flip=True)


def _small_config(names: dict[int, str]) -> DetrConfig:
    return DetrConfig(
        backbone="test_resnet",
        dilation=True,  # a map of 6 x 6 cells
        freeze_backbone_norms=False,  # nothing published to keep
        freeze_backbone_until=None,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        num_queries=10,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        id2label=names,
    )


def _save_fresh(start: Path, seed: int, processor: DetrImageProcessor, config: DetrConfig) -> None:
    torch.manual_seed(seed)
    DetrForObjectDetection(config).save_pretrained(start)
    processor.save_pretrained(start)


def _prepare(processor: DetrImageProcessor, rows: Dataset) -> tuple[torch.Tensor, list[dict]]:
    pixels, labels = [], []
    for first in range(0, len(rows), 200):
        some = [rows[index] for index in range(first, min(first + 200, len(rows)))]
        batch = processor(images=[row["image"] for row in some], annotations=some, return_tensors="pt")
        if "pixel_mask" in batch and not batch["pixel_mask"].all():
            raise ValueError("These pictures differ in shape; this benchmark keeps them all in one tensor.")
        pixels.append(batch["pixel_values"].half())
        labels += [{key: label[key] for key in ("class_labels", "boxes")} for label in batch["labels"]]
    return torch.cat(pixels), labels
