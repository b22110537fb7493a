"""Law 15 of masks: their AP, and panoptic quality, are one number, everywhere, though images have several sizes."""

import argparse
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_detr import CocoEvaluator, PanopticEvaluator, evaluate_model
from hf_detr.cli import evaluate as evaluate_command
from hf_detr.data.masks import boxes_from_masks, decode_segmentation, encode_mask
from hf_detr.data.schema import detection_features
from hf_detr.data.transform import DetectionTransform

from ..small_models import small_segmenter
from .test_one_number import NAMES, PROCESSOR, SIZES_WH, trainer_of

STUFF = [3, 4]


def alone(model, image, task) -> dict:
    """What the model finds in one image, as a user asks it."""
    inputs = PROCESSOR(images=image, return_tensors="pt")
    sizes = {"target_sizes": [image.size[::-1]], "processed_sizes": [inputs["pixel_values"].shape[-2:]]}
    with torch.no_grad():
        outputs = model(**inputs)
    if task == "instance":
        return PROCESSOR.post_process_masks(outputs, **sizes)[0]
    return PROCESSOR.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=STUFF, **sizes)[0]


def truth_near(found: dict, task: str, size_hw) -> list[tuple[int, np.ndarray]]:
    """(class, mask) of every second mask that was found, or of all segments; each a little moved."""
    if task == "instance":
        labels, masks = found["labels"].tolist(), [decode_segmentation(one, size_hw) for one in found["masks"]]
        pairs = list(zip(labels, masks, strict=True))[::2]
    else:
        labels = {info["id"]: info["label_id"] for info in found["segments_info"]}
        pairs = [(label, (found["segmentation"] == number).numpy()) for number, label in labels.items()]
    moved = [(label, np.roll(mask, k, axis=1).astype(np.uint8)) for k, (label, mask) in enumerate(pairs)]
    seen, kept = np.zeros(size_hw, bool), []
    for label, mask in moved:
        mask = mask & ~seen if task == "panoptic" else mask  # segments share no pixel
        seen |= mask.astype(bool)
        kept += [(label, mask)] if mask.any() else []
    return kept


def rows_of(model, task) -> Dataset:
    rng, rows = np.random.default_rng(0), []
    for image_id, (width, height) in enumerate(SIZES_WH):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        objects = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": [], "segmentation": []}
        for number, (label, mask) in enumerate(truth_near(alone(model, image, task), task, (height, width))):
            box = boxes_from_masks(mask[None])[0].tolist()
            for name, value in zip(objects, (number, box, label, mask.sum(), 0, encode_mask(mask)), strict=True):
                objects[name].append(value)
        if task == "panoptic":
            objects["is_thing"] = [label not in STUFF for label in objects["category"]]
        rows.append({"image": image, "image_id": image_id, "width": width, "height": height, "objects": objects})
    return Dataset.from_list(rows, features=detection_features(NAMES, masks=True, panoptic=task == "panoptic"))


@pytest.fixture(scope="module")
def model():
    segmenter = small_segmenter()
    with torch.no_grad():
        segmenter.detr.class_labels_classifier.weight *= 3  # sure enough to be segments
        segmenter.detr.class_labels_classifier.bias[-1] = -9.0
    names = dict(enumerate(NAMES))
    segmenter.config.id2label, segmenter.config.label2id = names, {name: label for label, name in names.items()}
    return segmenter


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_one_number_everywhere(model, task, tmp_path):
    model.config.label_ids_to_fuse = STUFF if task == "panoptic" else None
    rows = rows_of(model, task)

    def evaluator():
        return CocoEvaluator(NAMES, iou_type="segm") if task == "instance" else PanopticEvaluator(NAMES, STUFF)

    single = evaluator()
    for row in rows:
        single.update([alone(model, row["image"], task)], [row])
    expected = single.summary()
    assert 0.1 < expected["map" if task == "instance" else "pq"] < 0.99  # else equal numbers would say little

    numbers = {}
    for way, one in (("rows", rows), ("a stream", rows.to_iterable_dataset(num_shards=2))):
        counted = evaluate_model(model, PROCESSOR, one, batch_size=4, evaluator=evaluator())
        numbers[f"evaluate_model, {way}"] = counted.summary()
        metrics = trainer_of(model, one, tmp_path / "run", DetectionTransform(PROCESSOR, masks=True)).evaluate()
        numbers[f"DetrTrainer.evaluate, {way}"] = {name: metrics[f"eval_{name}"] for name in expected}

    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    DatasetDict(test=rows).save_to_disk(tmp_path / "data")
    parser = argparse.ArgumentParser()
    evaluate_command.add_arguments(parser)
    words = [str(tmp_path / "model"), str(tmp_path / "data"), "--json", str(tmp_path / "ap.json"), "--device", "cpu"]
    assert evaluate_command.run(parser.parse_args(words)) == 0
    numbers["hf-detr evaluate"] = json.loads((tmp_path / "ap.json").read_text())

    for way, got in numbers.items():
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, abs=1e-3), f"{way}: {name}"
