import json
import shutil

import pytest
import torch
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.cli.main import main
from hf_detr.data.loading import load_detection_dataset
from hf_detr.evaluation import CocoEvaluator
from hf_detr.evaluation.analysis import analyse

from .conftest import assert_one_line_and_exit_code_2, hf_detr, noise, write_coco

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
    words += ["--report", tmp_path / "page.html", "--save-thresholds"]
    model_dir = shutil.copytree(model_dir, tmp_path / "model")
    settings = json.loads((model_dir / "preprocessor_config.json").read_text())
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
    saved = json.loads((model_dir / "preprocessor_config.json").read_text())
    best = analyse(evaluator).curves
    expected = {label: best[["dog", "cat"][k]].threshold for label, k in CLASS_OF_LABEL.items()}
    expected = {str(label): threshold for label, threshold in expected.items() if threshold is not None}
    assert expected
    assert saved.pop("class_thresholds") == pytest.approx(expected, abs=1e-6)
    assert saved == settings  # all else stays
    assert page.count("data:image/jpeg") == len(load_detection_dataset(data)["validation"])  # each has an error


def test_predict_keeps_what_is_above_the_saved_thresholds_unless_it_is_given_one(model_dir, tmp_path, capsys):
    noise(60, 40, seed=0).save(tmp_path / "image.png")
    model = shutil.copytree(model_dir, tmp_path / "model")

    def predicted(name, *words):
        words = [*words, "--no-drawings", "--device", "cpu", "--output", str(tmp_path / name)]
        assert main(["predict", str(model), str(tmp_path / "image.png"), *words]) == 0
        return json.loads((tmp_path / name / "predictions.json").read_text())

    every = predicted("every", "--threshold", "0")
    label, scores = every[0]["category_id"], [row["score"] for row in every]
    bar = (scores[2] + scores[3]) / 2  # of the class of the surest
    processor = DetrImageProcessor.from_pretrained(model)
    processor.class_thresholds = {label: bar}
    processor.save_pretrained(model)
    capsys.readouterr()
    found = predicted("saved")
    assert "above the saved threshold of its class" in capsys.readouterr().out
    assert found == [row for row in every if row["score"] > (bar if row["category_id"] == label else 0.5)]
    assert 0 < len(found) < len(every)
    given = predicted("given", "--threshold", str(scores[-1] - 1e-3))
    assert given == every
    (model / "preprocessor_config.json").write_text('{"size": 64, "class_thresholds": {"1": "high"}}')
    assert main(["predict", str(model), str(tmp_path / "image.png"), "--output", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "preprocessor_config.json: class_thresholds: '1': 'high'" in error
    assert "--save-thresholds" in error


def test_thresholds_are_saved_in_a_folder_alone(tmp_path, capsys):
    write_coco(tmp_path / "coco")
    assert main(["evaluate", "somebody/detector", str(tmp_path / "coco"), "--save-thresholds"]) == 2
    assert "--save-thresholds: somebody/detector is no folder here" in capsys.readouterr().err


def test_evaluate_says_which_class_the_model_has_not(model_dir, digits_dir):
    done = hf_detr("evaluate", model_dir, digits_dir, "--split", "test")
    assert_one_line_and_exit_code_2(done, "the model has no class 'zero'", "'bird', 'dog', 'cat'")
