"""Law 15: one number, everywhere, though the images have several sizes. Law 12: what is not finite is no detection."""

import argparse
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import metadata_load
from PIL import Image

from hf_detr import CocoEvaluator, DetrForObjectDetection, DetrImageProcessor, evaluate_model
from hf_detr.checkpoints.tiny import tiny_checkpoint
from hf_detr.cli import evaluate as evaluate_command
from hf_detr.cli.main import main
from hf_detr.data.schema import detection_features
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import DetrTrainer, DetrTrainingArguments

from ..small_models import small_model

SIZES_WH = [(60, 40), (40, 60), (96, 32), (50, 50), (60, 40), (33, 80), (50, 50)]
PROCESSOR = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
NAMES = ["a", "b", "c", "d", "e"]


def alone(model, image) -> dict:
    """What the model finds in one image, as a user asks it."""
    with torch.no_grad():
        outputs = model(**PROCESSOR(images=image, return_tensors="pt"))
    return PROCESSOR.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.size[::-1]])[0]


def rows_near_what_is_found(model) -> Dataset:
    """Images of several sizes and aspect ratios; every second detection, a little moved, is an object."""
    rng = np.random.default_rng(0)
    rows = []
    for image_id, (width, height) in enumerate(SIZES_WH):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        found = alone(model, image)
        boxes, labels = [], []
        for box, label in list(zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True))[::2]:
            left, top, right, bottom = box
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
            boxes.append([left, top, max(1.0, 0.97 * (right - left)), max(1.0, bottom - top)])
            labels.append(label)
        objects = {"id": list(range(len(boxes))), "bbox": boxes, "category": labels}
        objects |= {"area": [w * h for _, _, w, h in boxes], "iscrowd": [0] * len(boxes)}
        rows.append({"image": image, "image_id": image_id, "width": width, "height": height, "objects": objects})
    return Dataset.from_list(rows, features=detection_features(NAMES))


@pytest.fixture(scope="module")
def case():
    model = small_model()
    names = dict(enumerate(NAMES))
    model.config.id2label, model.config.label2id = names, {name: label for label, name in names.items()}
    return model, rows_near_what_is_found(model)


def trainer_of(model, rows, folder, transform=None, **changes) -> DetrTrainer:
    quick = {"use_cpu": True, "disable_tqdm": True, "per_device_eval_batch_size": 4, "eval_strategy": "no"}
    args = DetrTrainingArguments(str(folder), **{**quick, **changes})
    transform = transform or DetectionTransform(PROCESSOR)
    return DetrTrainer(model, args, eval_dataset=transform_dataset(rows, transform), processing_class=PROCESSOR)


def test_one_number_everywhere(case, tmp_path):
    model, rows = case
    single = CocoEvaluator(NAMES)
    for row in rows:
        single.update([alone(model, row["image"])], [row])
    expected = single.summary()
    assert 0.2 < expected["map"] < 0.99  # else equal numbers would say little

    numbers = {"evaluate_model": evaluate_model(model, PROCESSOR, rows, batch_size=4).summary()}
    stream = rows.to_iterable_dataset(num_shards=2)
    numbers["evaluate_model, a stream"] = evaluate_model(
        model, PROCESSOR, stream, batch_size=4, num_workers=1
    ).summary()
    for way, one in (("DetrTrainer.evaluate", rows), ("DetrTrainer.evaluate, a stream", stream)):
        metrics = trainer_of(model, one, tmp_path / "run").evaluate()
        numbers[way] = {name: metrics[f"eval_{name}"] for name in expected}
    # rows that do not tell what size an image will have
    unknown = DetectionTransform(PROCESSOR, lambda row: row)
    metrics = trainer_of(model, rows, tmp_path / "unknown", unknown).evaluate()
    numbers["DetrTrainer.evaluate, sizes unknown"] = {name: metrics[f"eval_{name}"] for name in expected}

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


def test_evaluation_pads_nothing_and_sees_every_image_once(case, tmp_path):
    model, rows = case
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    evaluators = [
        evaluate_model(model, PROCESSOR, rows, batch_size=4, process_index=i, num_processes=3) for i in (0, 1, 2)
    ]
    trainer_of(model, rows, tmp_path).evaluate()
    hook.remove()
    assert all(inputs.get("pixel_mask") is None for inputs in seen)
    assert any(len(inputs["pixel_values"]) > 1 for inputs in seen)  # like sizes still share a batch
    assert sum(map(len, evaluators)) == len(rows)
    first, *others = evaluators
    for other in others:
        first.merge(other.state())
    assert first.compute() == evaluate_model(model, PROCESSOR, rows, batch_size=4).compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_an_error_and_no_detection(case, tmp_path, value):
    _, rows = case
    broken = small_model()
    with torch.no_grad():
        broken.class_labels_classifier.bias[0] = value
    broken.config.id2label = dict(enumerate(NAMES))
    with pytest.raises(ValueError, match=r"image \d+: the model's outputs hold a NaN or an infinity"):
        evaluate_model(broken, PROCESSOR, rows)
    with pytest.raises(ValueError, match=r"not finite|NaN or an infinity"):
        trainer_of(broken, rows, tmp_path).evaluate()


def test_the_number_after_a_training_in_bf16_is_that_of_float32(case, tmp_path):
    _, rows = case
    train = transform_dataset(rows, DetectionTransform(PROCESSOR))
    args = DetrTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, bf16=True, max_steps=1, eval_strategy="no", save_strategy="no"
    )
    trainer = DetrTrainer(small_model(), args, train_dataset=train, eval_dataset=train, processing_class=PROCESSOR)
    trainer.train()
    got = trainer.evaluate()["eval_loss"]
    plain = small_model()
    plain.load_state_dict(trainer.model.state_dict())
    expected = trainer_of(plain, rows, tmp_path / "plain").evaluate()["eval_loss"]
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_ap_of_a_run_is_one_number_in_its_metrics_its_card_and_from_both_evaluations(tmp_path):
    names = {"train": 12, "validation": 4, "test": 6}
    rows = {split: digit_scenes(count, 96, seed=index) for index, (split, count) in enumerate(names.items())}
    DatasetDict(rows).save_to_disk(tmp_path / "data")
    run, words = tmp_path / "run", ["--epochs", "1", "--workers", "0", "--device", "cpu", "--augment", "none"]
    words += ["--model", tiny_checkpoint(), "--output", str(run)]
    assert main(["train", str(tmp_path / "data"), *words]) == 0
    saved = json.loads((run / "metrics.json").read_text())
    assert saved["split"] == "test"
    expected = saved["metrics"]["map"]
    assert 0.1 < expected < 0.99  # else equal numbers would say little

    [result] = metadata_load(run / "README.md")["model-index"][0]["results"]
    numbers = {"card": next(one["value"] for one in result["metrics"] if one["name"].startswith("AP ("))}
    assert f"| AP (IoU 0.50 to 0.95) | {expected:.3f} |" in (run / "README.md").read_text()
    command = ["evaluate", str(run), str(tmp_path / "data"), "--device", "cpu", "--json", str(tmp_path / "ap.json")]
    assert main(command) == 0
    numbers["hf-detr evaluate"] = json.loads((tmp_path / "ap.json").read_text())["map"]
    model, processor = DetrForObjectDetection.from_pretrained(run), DetrImageProcessor.from_pretrained(run)
    trainer = trainer_of(model, rows["test"], tmp_path / "again", DetectionTransform(processor))
    numbers["DetrTrainer.evaluate"] = trainer.evaluate()["eval_map"]
    assert numbers == pytest.approx(dict.fromkeys(numbers, expected), abs=1e-3)
