"""CocoEvaluator: the numbers of pycocotools from every form of input, and nothing taken in that is not right."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr.evaluation import CocoEvaluator, PanopticEvaluator, SemanticEvaluator, coco, evaluate_detections

from .evaluation_cases import NAMES, make_case, pycocotools_metrics
from .mask_cases import make_mask_case, make_panoptic_case, make_semantic_case

CLASSES = ["cat", "dog", "cow", "ant"]
MASK_CLASSES = ["cat", "dog", "cow", "sky", "sea"]
BCCD = Path(__file__).resolve().parents[2] / "../shared/data/bccd"


def evaluate(results, targets, **options) -> CocoEvaluator:
    evaluator = CocoEvaluator(**{"class_names": CLASSES} | options)
    for start in range(0, len(results), 4):
        evaluator.update(results[start : start + 4], targets[start : start + 4])
    return evaluator


def one_image(image_id: int = 7, **detections):
    """A batch of one image with one right detection; keyword arguments replace parts of the detections."""
    result = {"scores": [0.9], "labels": [1], "boxes": [[10.0, 10.0, 50.0, 60.0]]} | detections
    row = {"image_id": image_id, "objects": {"bbox": [[10.0, 10.0, 40.0, 50.0]], "category": [1]}}
    return [result], [row]


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    results, rows = make_case(seed, crowds=seed != 1, ties=seed != 2)
    metrics = evaluate(results, rows).compute()
    expected = pycocotools_metrics(results, rows, len(CLASSES))
    assert {name: metrics[name] for name in NAMES} == pytest.approx(expected, abs=0)
    assert 0.1 < metrics["map"] < 0.95


def test_every_class_has_the_numbers_of_pycocotools():
    pytest.importorskip("pycocotools")
    results, rows = make_case(11)
    per_class = evaluate(results, rows).compute()["per_class"]
    assert list(per_class) == CLASSES
    for class_id, name in enumerate(CLASSES):
        expected = pycocotools_metrics(results, rows, len(CLASSES), class_id=class_id)
        assert {key: per_class[name][key] for key in NAMES} == pytest.approx(expected, abs=0)
    assert per_class["ant"]["map"] == -1
    assert per_class["ant"]["num_targets"] == 0 < per_class["ant"]["num_detections"]


@pytest.mark.parametrize("max_dets", [(1, 2, 3), (2, 10, 50), (1, 10, 300)])
def test_max_dets_limit_what_is_looked_at(max_dets):
    pytest.importorskip("pycocotools")
    results, rows = make_case(5)
    metrics = evaluate(results, rows, max_dets=max_dets).compute()
    expected = pycocotools_metrics(results, rows, len(CLASSES), max_dets)
    renamed = dict(zip(("mar_1", "mar_10", "mar_100"), (f"mar_{limit}" for limit in max_dets), strict=True))
    assert {name: metrics[renamed.get(name, name)] for name in NAMES} == pytest.approx(expected, abs=0)


def test_one_limit_and_own_thresholds_are_enough():
    results, rows = make_case(5)
    every = evaluate(results, rows).compute()
    metrics = evaluate(results, rows, max_dets=[100], iou_thresholds=[0.5]).compute()
    assert metrics["map"] == metrics["map_50"] == pytest.approx(every["map_50"], abs=1e-12)
    assert metrics["map_75"] == -1
    assert "mar_10" not in metrics


def test_bccd_with_moved_boxes_has_the_numbers_of_pycocotools():
    pytest.importorskip("pycocotools")
    if not BCCD.is_dir():
        pytest.skip("the bccd data set is not beside the repository")
    rng = np.random.default_rng(0)
    names = ["RBC", "WBC", "Platelets"]
    results, rows = [], []
    for image_id, stem in enumerate((BCCD / "ImageSets/Main/test.txt").read_text().split()):
        objects = ElementTree.parse(BCCD / f"Annotations/{stem}.xml").findall("object")
        corners = np.array(
            [[float(item.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
        ).reshape(-1, 4)
        labels = np.array([names.index(item.find("name").text) for item in objects], dtype=np.int64)
        boxes_xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
        annotations = [
            {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(boxes_xywh.tolist(), labels.tolist(), strict=True)
        ]
        rows.append({"image_id": image_id, "annotations": annotations})
        kept = np.flatnonzero(rng.random(len(labels)) < 0.9)
        found = corners[kept] + rng.normal(0, 0.06, (len(kept), 4)) * np.tile(boxes_xywh[kept, 2:], 2)
        found = np.concatenate((np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])), axis=1)
        wrong = rng.random(len(kept)) < 0.1
        found_labels = np.where(wrong, rng.integers(0, 3, len(kept)), labels[kept])
        results.append({"scores": rng.random(len(kept)).round(2), "labels": found_labels, "boxes": found})
    metrics = evaluate(results, rows, class_names=names).compute()
    assert {name: metrics[name] for name in NAMES} == pytest.approx(pycocotools_metrics(results, rows, 3), abs=0)
    assert metrics["num_images"] == len(rows) > 50


def test_classes_evaluated_in_groups_or_together_give_the_same(monkeypatch):
    results, rows = make_case(3)
    together = evaluate(results, rows).compute()
    monkeypatch.setattr(coco, "_DETECTIONS_AT_ONCE", 1)
    monkeypatch.setattr(coco, "_IMAGES_AT_ONCE", 2)
    assert evaluate(results, rows).compute() == together


def test_crowds_are_ignored_regions():
    crowd = {"bbox": [0.0, 0.0, 200.0, 200.0], "category_id": 1, "area": 40000.0, "iscrowd": 1}
    target = {"bbox": [10.0, 10.0, 40.0, 50.0], "category_id": 1, "area": 2000.0, "iscrowd": 0}
    result = {
        "scores": [0.9, 0.8, 0.95],
        "labels": [1, 1, 1],
        "boxes": [[10, 10, 50, 60], [100, 100, 150, 150], [120, 90, 190, 180]],
    }
    inside = evaluate([result], [{"image_id": 1, "annotations": [target, crowd]}]).compute()
    assert inside["map"] == pytest.approx(1.0)
    assert (inside["num_targets"], inside["num_crowds"]) == (1, 1)
    assert evaluate([result], [{"image_id": 1, "annotations": [target]}]).compute()["map"] == pytest.approx(0.5)


def as_labels(row: dict, scale: float = 2.5, size_hw=(480, 640)) -> dict:
    """A COCO row as the processor's label dict: float32, fractions of the image, area in the resized one."""
    size = torch.tensor([int(side * scale) for side in size_hw])
    boxes = torch.tensor([item["bbox"] for item in row["annotations"]], dtype=torch.float64).reshape(-1, 4)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    width_height = torch.tensor([size_hw[1], size_hw[0]] * 2)
    factor = size.prod().item() / (size_hw[0] * size_hw[1])
    return {
        "image_id": torch.tensor([row["image_id"]]),
        "class_labels": torch.tensor([item["category_id"] for item in row["annotations"]], dtype=torch.int64),
        "boxes": (torch.cat((centres, boxes[:, 2:]), dim=1) / width_height).float(),
        "area": torch.tensor([item["area"] * factor for item in row["annotations"]], dtype=torch.float32),
        "iscrowd": torch.tensor([item["iscrowd"] for item in row["annotations"]], dtype=torch.int64),
        "orig_size": torch.tensor(size_hw),
        "size": size,
        "masks": torch.zeros(len(row["annotations"]), 2, 2),
    }


def test_processor_labels_give_the_numbers_of_the_rows_whatever_the_resize():
    results, rows = make_case(8)
    expected = evaluate(results, rows).compute()
    for scale in (0.3, 1.0, 2.5):
        metrics = evaluate(results, [as_labels(row, scale) for row in rows]).compute()
        per_class, expected_per_class = metrics.pop("per_class"), {**expected}.pop("per_class")
        assert metrics == pytest.approx({k: v for k, v in expected.items() if k != "per_class"}, abs=0)
        for name in CLASSES:
            assert per_class[name] == pytest.approx(expected_per_class[name], abs=0)


def test_an_area_on_the_border_of_two_sizes_survives_the_processor():
    row = {"image_id": 1, "annotations": [{"bbox": [3, 5, 32, 32], "category_id": 0, "area": 1024.0, "iscrowd": 0}]}
    result = {"scores": [0.5], "labels": [0], "boxes": [[3.0, 5.0, 35.0, 37.0]]}
    for scale in np.linspace(0.4, 3, 40):
        labels = as_labels(row, float(scale), (427, 613))
        without_area = {key: value for key, value in labels.items() if key != "area"}
        for target in (labels, without_area):
            metrics = evaluate([result], [target]).compute()
            assert metrics["map_small"] == metrics["map_medium"] == pytest.approx(1.0)


def test_every_usual_form_of_input_gives_the_same_numbers():
    results, rows = make_case(9)
    expected = evaluate(results, rows).compute()

    def objects(row, as_list):
        items = [{"category" if k == "category_id" else k: v for k, v in a.items()} for a in row["annotations"]]
        columns = {key: [item[key] for item in items] for key in ("bbox", "category", "area", "iscrowd")}
        return {"image_id": row["image_id"], "width": 640, "objects": items if as_list else columns}

    tensors = [{key: torch.tensor(value) for key, value in result.items()} for result in results]
    lists = [{key: value.tolist() for key, value in result.items()} for result in results]
    for form in (tensors, lists):
        assert evaluate(form, rows).compute() == expected
    for as_list in (False, True):
        assert evaluate(results, [objects(row, as_list) for row in rows]).compute() == expected


def test_half_precision_results_are_taken():
    results, rows = make_case(9, num_images=6)
    half = [result | {key: torch.tensor(result[key]).bfloat16() for key in ("scores", "boxes")} for result in results]
    rounded = [{key: value if key == "labels" else value.float() for key, value in result.items()} for result in half]
    assert evaluate(half, rows).compute() == evaluate(rounded, rows).compute()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_on_a_gpu_give_the_numbers_of_the_host():
    results, rows = make_case(9)
    on_gpu = [{key: torch.tensor(value).cuda() for key, value in result.items()} for result in results]
    labels = [{key: value.cuda() for key, value in as_labels(row).items()} for row in rows]
    expected = evaluate(results, [as_labels(row) for row in rows]).compute()
    assert evaluate(on_gpu, labels).compute() == expected


def test_later_changes_of_a_result_do_not_reach_the_evaluation():
    results, rows = make_case(2, num_images=5)
    tensors = [{key: torch.tensor(value) for key, value in result.items()} for result in results]
    evaluator = evaluate(tensors, rows)
    for result in tensors:
        result["scores"].zero_()
        result["boxes"].mul_(3)
    assert evaluator.compute() == evaluate(results, rows).compute()


def test_the_order_of_images_does_not_matter():
    results, rows = make_case(4)
    assert evaluate(results[::-1], rows[::-1]).compute() == evaluate(results, rows).compute()


# --- nothing there ---


def test_no_image_at_all_is_undefined_and_no_crash():
    metrics = CocoEvaluator(CLASSES).compute()
    assert all(metrics[name] == -1 for name in NAMES)
    assert metrics["num_images"] == metrics["num_targets"] == metrics["num_detections"] == 0
    assert "0 images" in CocoEvaluator(CLASSES).table()
    assert CocoEvaluator().compute()["per_class"] == {}


@pytest.mark.parametrize("without", ["detections", "targets", "both"])
def test_nothing_found_or_nothing_to_find_is_what_pycocotools_says(without):
    pytest.importorskip("pycocotools")
    results, rows = make_case(1)
    if without != "targets":
        results = [{"scores": np.zeros(0), "labels": np.zeros(0, int), "boxes": np.zeros((0, 4))} for _ in results]
    if without != "detections":
        rows = [row | {"annotations": []} for row in rows]
    metrics = evaluate(results, rows).compute()
    expected = pycocotools_metrics(results, rows, len(CLASSES))
    assert {name: metrics[name] for name in NAMES} == pytest.approx(expected, abs=0)
    assert metrics["map"] == (0 if without == "detections" else -1)


def test_empty_lists_are_an_image_with_nothing():
    evaluator = CocoEvaluator(CLASSES)
    evaluator.update(
        [{"scores": [], "labels": [], "boxes": []}], [{"image_id": 3, "objects": {"bbox": [], "category": []}}]
    )
    labels = as_labels({"image_id": 4, "annotations": []})
    evaluator.update([{"scores": torch.zeros(0), "labels": torch.zeros(0), "boxes": torch.zeros(0, 4)}], [labels])
    assert evaluator.compute()["num_images"] == len(evaluator) == 2


# --- what is wrong is said ---


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({"scores": [0.9, 0.8]}, "image 7: 1 boxes, 2 scores and 1 labels"),
        ({"scores": [float("nan")]}, "image 7: detection scores hold a NaN"),
        ({"boxes": [[0.0, 0.0, float("inf"), 4.0]]}, "image 7: detection boxes hold a NaN or an infinity, first at 0"),
        ({"boxes": [[100.0, 100.0, 30.0, 40.0]]}, "image 7: detection 0 has the box .* not xywh"),
        ({"boxes": [[1.0, 2.0, 3.0]]}, r"image 7: detection boxes must be \(N, 4\)"),
        ({"boxes": [[1.0, 2.0, 3.0, 4.0], [1.0]]}, "image 7: detection boxes are ragged"),
        ({"labels": [4]}, r"image 7: a detection has the label 4, and the known classes are 0 \(cat\)"),
        ({"labels": [-1]}, "image 7: a detection has the label -1"),
    ],
)
def test_a_bad_detection_names_its_image(detections, message):
    evaluator = CocoEvaluator(CLASSES)
    with pytest.raises(ValueError, match=message):
        evaluator.update(*one_image(**detections))
    assert len(evaluator) == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"image_id": 7, "objects": {"bbox": [[1, 2, 3, 4]], "category": [0, 1]}},
            r"image 7: .* differ in length, {'bbox': 1, 'category': 2}",
        ),
        (
            {"image_id": 7, "objects": {"bbox": [[1, 2, -3, 4]], "category": [0]}},
            "image 7: target boxes have a neg",
        ),
        (
            {"image_id": 7, "objects": {"bbox": [[1, 2, float("nan"), 4]], "category": [0]}},
            "image 7: target boxes",
        ),
        ({"image_id": 7, "objects": {"bbox": [[1, 2, 3, 4]], "category": [9]}}, "image 7: a target has the label 9"),
        ({"image_id": 7, "objects": {"bbox": []}}, "image 7: the objects lack category"),
        ({"image_id": 7, "annotations": [{"bbox": [1, 2, 3, 4]}]}, "image 7: object 0 needs 'bbox' and 'category_id'"),
        ({"image_id": 7, "boxes": []}, "image 7: a target needs 'class_labels'"),
        ({"image_id": 7, "class_labels": [0], "boxes": [[0.5] * 4]}, "image 7: the labels lack orig_size"),
        ({"objects": {}}, "target 0 of the batch: no 'image_id'"),
    ],
)
def test_a_bad_target_names_its_image(target, message):
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(CLASSES).update(one_image()[0], [target])


def test_an_area_that_cannot_be_scaled_back_is_an_error():
    labels = as_labels(make_case(1)[1][1])
    del labels["size"]
    with pytest.raises(ValueError, match="'area' is counted in pixels of the resized image"):
        CocoEvaluator(CLASSES).update(one_image(0)[0], [labels])
    del labels["area"]
    CocoEvaluator(CLASSES).update(one_image(0)[0], [labels])


@pytest.mark.parametrize("image_id", ["a.jpg", 1.5, [1, 2], None])
def test_an_image_id_is_one_integer(image_id):
    with pytest.raises(TypeError, match="'image_id' must be one integer"):
        CocoEvaluator().update(one_image()[0], [one_image()[1][0] | {"image_id": image_id}])


def test_as_many_results_as_targets():
    with pytest.raises(ValueError, match="1 results for 2 targets"):
        CocoEvaluator().update(one_image()[0], one_image()[1] * 2)


def test_a_batch_is_taken_whole_or_not_at_all():
    evaluator = CocoEvaluator(CLASSES)
    (good, good_row), (bad, bad_row) = one_image(1), one_image(2, labels=[17])
    with pytest.raises(ValueError, match="image 2"):
        evaluator.update(good + bad, good_row + bad_row)
    assert len(evaluator) == 0


@pytest.mark.parametrize(
    "options",
    [{"max_dets": []}, {"max_dets": (0, 10)}, {"max_dets": (10, 10)}, {"iou_thresholds": []}, {"iou_thresholds": [2]}],
)
def test_settings_without_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CocoEvaluator(**options)


# --- images seen twice, and several processes ---


def test_an_image_seen_twice_counts_once_and_the_first_stays():
    evaluator = CocoEvaluator(CLASSES)
    evaluator.update(*one_image(7))
    evaluator.update(*one_image(7, boxes=[[200.0, 200.0, 220.0, 220.0]]))
    metrics = evaluator.compute()
    assert metrics["map"] == pytest.approx(1.0)
    assert (metrics["num_images"], metrics["num_duplicates"]) == (1, 1)
    assert "1 duplicate" in evaluator.table()


def test_two_images_under_one_id_are_an_error():
    evaluator = CocoEvaluator(CLASSES)
    evaluator.update(*one_image(7))
    other = {"image_id": 7, "objects": {"bbox": [[90.0, 10.0, 40.0, 50.0]], "category": [1]}}
    with pytest.raises(ValueError, match="image 7: came twice with different targets"):
        evaluator.update(one_image()[0], [other])


def test_merged_states_give_the_numbers_of_one_evaluator():
    results, rows = make_case(6)
    first, second = evaluate(results[:9], rows[:9]), evaluate(results[7:], rows[7:])
    first.merge(second.state())
    expected = evaluate(results, rows).compute()
    assert first.compute() == expected | {"num_duplicates": 2}


def test_two_processes_give_the_numbers_of_one(tmp_path):
    script = Path(__file__).with_name("two_process_worker.py")
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    for worker in workers:
        output = worker.communicate(timeout=120)[0].decode()
        assert worker.returncode == 0, output
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert answers[0] == answers[1]

    results, rows = make_case(6)
    expected = evaluate(results, rows).compute()
    # the worker gives each process its uneven share, with one image that both saw
    assert answers[0]["after_first"]["num_images"] == 12
    assert answers[0]["after_all"] == expected | {"num_duplicates": 1}
    assert answers[0]["after_nothing_new"] == answers[0]["after_all"]
    kinds = {
        "masks": (CocoEvaluator(MASK_CLASSES, iou_type="segm"), make_mask_case),
        "segments": (PanopticEvaluator(MASK_CLASSES), make_panoptic_case),
        "classes": (SemanticEvaluator(MASK_CLASSES), make_semantic_case),
    }
    for name, (evaluator, make) in kinds.items():
        evaluator.update(*make(6))
        assert answers[0][name] == evaluator.compute() | {"num_duplicates": 1}


# --- what comes out ---


def test_the_results_file_has_the_numbers_of_the_evaluator(tmp_path):
    results, rows = make_case(10)
    category_ids = [18, 3, 44, 90]
    evaluator = evaluate(results, rows)
    written = evaluator.write_results(tmp_path / "new/results.json", category_ids)
    detections = json.loads((tmp_path / "new/results.json").read_text())
    assert len(detections) == written == sum(len(result["scores"]) for result in results)
    assert {d["category_id"] for d in detections} <= set(category_ids)

    again = []
    for row in rows:
        mine = [d for d in detections if d["image_id"] == row["image_id"]]
        boxes = np.array([d["bbox"] for d in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [category_ids.index(d["category_id"]) for d in mine]
        again.append({"scores": [d["score"] for d in mine], "labels": labels, "boxes": boxes})
    assert evaluate(again, rows).summary() == pytest.approx(evaluator.summary(), abs=1e-9)


def test_a_class_without_category_id_is_not_written(tmp_path):
    evaluator = evaluate(*one_image())
    with pytest.raises(ValueError, match=r"category_ids lacks the classes \[1\]"):
        evaluator.write_results(tmp_path / "results.json", {0: 5})
    assert not (tmp_path / "results.json").exists()


def test_an_empty_results_file_is_an_empty_list(tmp_path):
    assert CocoEvaluator().write_results(tmp_path / "results.json") == 0
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_table_and_json_say_what_compute_says(tmp_path):
    results, rows = make_case(10)
    evaluator = evaluate(results, rows)
    metrics, table = evaluator.compute(), evaluator.table()
    assert json.loads(evaluator.to_json(tmp_path / "metrics.json")) == metrics
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    for name, values in metrics["per_class"].items():
        row = next(line for line in table.splitlines() if line.startswith(name + " "))
        shown = "-" if values["map"] < 0 else f"{values['map']:.3f}"
        assert row.split()[1] == shown
        assert row.split()[-2] == str(values["num_targets"])
    assert re.search(rf"AP50\s+{metrics['map_50']:.3f}\s+AR@10\s+{metrics['mar_10']:.3f}", table)
    assert set(evaluator.summary()) == set(metrics) - {"per_class"}


def test_classes_are_named_by_list_by_mapping_and_by_number():
    assert list(evaluate(*one_image(), class_names={"1": "dog", 0: "cat"}).compute()["per_class"]) == ["cat", "dog"]
    assert list(evaluate(*one_image(), class_names=None).compute()["per_class"]) == ["1"]
    shared = evaluate(*one_image(), class_names=["cell", "cell", "rod"]).compute()["per_class"]
    assert list(shared) == ["cell (0)", "cell (1)", "rod"]
    with pytest.raises(TypeError, match="list of names"):
        CocoEvaluator("cat")


def test_classes_with_gaps_in_their_ids_keep_their_numbers():
    results, rows = make_case(3)
    expected = evaluate(results, rows).compute()
    ids = [2, 17, 30, 91]
    results = [result | {"labels": np.array(ids)[result["labels"].astype(int)]} for result in results]
    rows = [
        row | {"annotations": [item | {"category_id": ids[item["category_id"]]} for item in row["annotations"]]}
        for row in rows
    ]
    assert evaluate(results, rows, class_names=dict(zip(ids, CLASSES, strict=True))).compute() == expected


def test_compute_goes_on_after_more_images_and_starts_over_after_reset():
    results, rows = make_case(3)
    evaluator = evaluate(results[:10], rows[:10])
    evaluator.compute()["per_class"].clear()  # what the caller does with his copy stays his
    evaluator.update(results[10:], rows[10:])
    assert evaluator.compute() == evaluate(results, rows).compute()
    evaluator.reset()
    assert evaluator.compute()["num_images"] == 0


def test_evaluate_detections_feeds_every_batch():
    results, rows = make_case(3)
    batches = [{"results": results[i : i + 6], "labels": rows[i : i + 6]} for i in range(0, len(rows), 6)]
    evaluator = CocoEvaluator(CLASSES)
    for _ in range(2):  # each pass starts empty
        metrics = evaluate_detections(lambda batch: batch["results"], batches, evaluator)
    assert metrics == evaluate(results, rows).compute()


def test_a_row_with_its_picture_is_taken():
    row = one_image()[1][0] | {"image": Image.new("RGB", (8, 8))}
    assert evaluate(one_image()[0], [row]).compute()["map"] == pytest.approx(1.0)
