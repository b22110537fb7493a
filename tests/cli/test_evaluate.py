import json

import pytest
import torch
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.loading import load_detection_dataset
from hf_detr.evaluation import CocoEvaluator

from .conftest import assert_one_line_and_exit_code_2, hf_detr, write_coco

CLASS_OF_LABEL = {1: 0, 2: 1}  # the model's dog and cat -> the data's, which are in the order of the ids 3 and 7


def detect(model, processor, image) -> dict:
    """What the model finds of the data's classes, as the data numbers them."""
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    [found] = processor.post_process_object_detection(outputs, 0.0, [image.size[::-1]])
    known = [i for i, label in enumerate(found["labels"].tolist()) if label in CLASS_OF_LABEL]
    found = {name: values[known] for name, values in found.items()}
    return {**found, "labels": torch.tensor([CLASS_OF_LABEL[label] for label in found["labels"].tolist()])}


def annotate_what_the_model_sees(data, find) -> None:
    """Annotations near two detections a picture, and one where nothing is: AP is neither 0 nor 1."""
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    for image in content["images"]:
        found = find(Image.open(data / "val2017" / image["file_name"]))
        objects = [(10.0, 10.0, 4.0, 4.0, 3)]
        for (left, top, right, bottom), label in list(
            zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
        )[:2]:
            left, top = max(left, 0.0), max(top, 0.0)
            width, height = min(right, 40.0) - left, min(bottom, 30.0) - top
            objects.append((left, top, 0.87 * width, height, (3, 7)[label]))
        for *box, category in objects:
            number = len(content["annotations"]) + 1
            one = {"id": number, "image_id": image["id"], "bbox": box, "category_id": category, "iscrowd": 0}
            content["annotations"].append({**one, "area": box[2] * box[3]})
    file.write_text(json.dumps(content))


def test_evaluate_matches_classes_by_name_and_writes_the_datas_own_ids(model_dir, tmp_path):
    data = write_coco(tmp_path / "coco")
    model = DetrForObjectDetection.from_pretrained(model_dir).eval()
    processor = DetrImageProcessor.from_pretrained(model_dir)
    annotate_what_the_model_sees(data, lambda image: detect(model, processor, image))
    words = ["--json", tmp_path / "ap.json", "--results", tmp_path / "results.json", "--max-dets", "1", "5"]
    words += ["--report", tmp_path / "page.html"]
    done = hf_detr("evaluate", model_dir, data, "--batch-size", "2", *words)
    assert done.returncode == 0, done.stderr
    assert "'bird': classes of the model that the data has not" in done.stderr
    assert "split 'validation'" in done.stdout

    evaluator = CocoEvaluator(["dog", "cat"], max_dets=(1, 5))
    for row in load_detection_dataset(data)["validation"]:
        evaluator.update([detect(model, processor, row["image"])], [row])
    expected, written = evaluator.compute(), json.loads((tmp_path / "ap.json").read_text())
    assert 0 < expected["map"] < 1  # else equal numbers would say nothing
    assert written["per_class"].keys() == {"dog", "cat"}
    assert {key: value for key, value in written.items() if key != "per_class"} == pytest.approx(
        evaluator.summary(), abs=1e-6
    )
    assert evaluator.table() == done.stdout.split("\n\n", 1)[1].split("\n\nwritten")[0]
    assert {row["category_id"] for row in json.loads((tmp_path / "results.json").read_text())} <= {3, 7}
    page = (tmp_path / "page.html").read_text()
    assert f"<td>{written['map']:.3f}</td>" in page
    assert page.count("data:image/jpeg") == len(load_detection_dataset(data)["validation"])  # each has an error


def test_evaluate_says_which_class_the_model_has_not(model_dir, digits_dir):
    done = hf_detr("evaluate", model_dir, digits_dir, "--split", "test")
    assert_one_line_and_exit_code_2(done, "the model has no class 'zero'", "'bird', 'dog', 'cat'")
