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

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor, load_detection_dataset, tiny_checkpoint
from hf_detr.data.schema import id2label
from hf_detr.data.strong_augmentation import FlipAndResize


@dataclass
class Case:
    """A data set to train and to test on, and how.

    Attributes:
        pixels: (N, C, H, W) float16, normalised; labels: one dict an image.
        test: rows of the schema, which `processor` prepares.
        flip: mirror every second image, at random.
        mixed_precision: bf16, where processors are quicker with it; they are not with depthwise convolutions.
        rows: of the schema, decoded, to train on by the package's own augmentation; photographs alone.
    """

    name: str
    pixels: torch.Tensor
    labels: list[dict[str, torch.Tensor]]
    test: Dataset
    processor: DetrImageProcessor
    batch_size: int
    rate: float
    backbone_rate: float
    flip: bool
    mixed_precision: bool
    rows: list[dict] | None = None


def prepare(name: str, data: Path | None, start: Path | None, file: Path) -> None:
    """Writes the case called `name` for `one_run.train`. bccd needs `data`, the folder of the photographs, and `start`,
    made by examples/start_from_efficientnet.py."""
    if name == "digits":
        from hf_detr.data.synthetic.digits import digit_scenes

        processor = DetrImageProcessor(size={"height": 96, "width": 96})
        train, test = digit_scenes(6_000, 96), digit_scenes(200, 96, seed=1, split="test")
        case = Case(name, *_inputs(processor, train), test, processor, 32, 1e-3, 1e-3, False, True)
    elif name == "shapes":
        from hf_detr.data.synthetic.shapes import shape_scenes

        processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
        train, test = shape_scenes(2_000, 96), shape_scenes(200, 96, seed=1, split="test")
        case = Case(name, *_inputs(processor, train), test, processor, 16, 1e-3, 1e-3, False, True)
    else:
        processor = DetrImageProcessor.from_pretrained(start)
        splits = load_detection_dataset(data, format="voc", on_bad_box="drop")
        train, test = splits["train"], splits["test"]
        case = Case(name, *_inputs(processor, train), test, processor, 4, 5e-4, 1e-4, True, False)
        case.rows = _rows(processor, train)
    torch.save(case, file)


def write_start(case: Case, start: Path, seed: int) -> None:
    """Writes the weights everyone starts from into `start`; those of bccd are there."""
    if case.name == "bccd":
        return
    torch.manual_seed(seed)
    names = id2label(case.test)
    if case.name == "digits":
        sizes = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 10}
        sizes |= {"encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
        dropouts = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        frozen = {"freeze_backbone_norms": False, "freeze_backbone_until": None}  # nothing published to keep
        # dilation: a map of 6 x 6 cells
        config = DetrConfig(backbone="test_resnet", dilation=True, id2label=names, **sizes, **dropouts, **frozen)
        model = DetrForObjectDetection(config)
    else:
        model = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=names)
    model.save_pretrained(start)
    case.processor.save_pretrained(start)


def _rows(processor: DetrImageProcessor, data: Dataset) -> list[dict]:
    """Decoded, and at most twice as large as they are trained on: more than that no augmentation shows."""
    shrink = FlipAndResize({name: 2 * edge for name, edge in dict(processor.size).items() if edge}, 0.0)
    rows = []
    for row in data:
        small = shrink(row)
        rows.append(small if small["height"] < row["height"] else row)
    return rows


def _inputs(processor: DetrImageProcessor, rows: Dataset) -> tuple[torch.Tensor, list[dict]]:
    pixels, labels = [], []
    for first in range(0, len(rows), 200):
        some = [rows[index] for index in range(first, min(first + 200, len(rows)))]
        batch = processor(images=[row["image"] for row in some], annotations=some, return_tensors="pt")
        if "pixel_mask" in batch and not batch["pixel_mask"].all():
            raise ValueError("These images differ in shape; this benchmark keeps them all in one tensor.")
        pixels.append(batch["pixel_values"].half())
        labels += [{key: label[key] for key in ("class_labels", "boxes")} for label in batch["labels"]]
    return torch.cat(pixels), labels
