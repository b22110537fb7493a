"""Mask AP is pycocotools', panoptic quality the paper's, mean IoU the sum of all pixels'; nothing else is taken in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr import shape_scenes
from hf_detr.data.masks import decode_segmentation
from hf_detr.data.schema import class_names
from hf_detr.evaluation import CocoEvaluator, EvaluatorGroup, PanopticEvaluator, SemanticEvaluator
from hf_detr.evaluation.panoptic import read_truth

from .mask_cases import (
    SIZE_HW,
    STUFF,
    encode,
    make_mask_case,
    make_panoptic_case,
    make_semantic_case,
    naive_panoptic_quality,
    pycocotools_mask_metrics,
)

CLASSES = ["cat", "dog", "cow", "sky", "sea"]
NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
NAMES += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]


def fed(evaluator, results, targets, step=3):
    for start in range(0, len(results), step):
        evaluator.update(results[start : start + step], targets[start : start + step])
    return evaluator


def masks_evaluated(results, rows, names=CLASSES[:4]):
    return fed(CocoEvaluator(names, iou_type="segm"), results, rows)


# --- mask AP ---


@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_is_that_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    results, rows = make_mask_case(seed)
    metrics = masks_evaluated(results, rows).compute()
    assert [metrics[name] for name in NAMES] == pycocotools_mask_metrics(results, rows, 4)
    assert 0.1 < metrics["map"] < 0.95
    expected = pycocotools_mask_metrics(results, rows, 4, class_id=1)
    assert [metrics["per_class"]["dog"][name] for name in NAMES] == expected


def test_every_form_of_masks_gives_the_same_numbers(tmp_path):
    results, rows = make_mask_case(3)
    expected = masks_evaluated(results, rows).compute()
    arrays, entries, labels = [], [], []
    for result, row in zip(results, rows, strict=True):
        stack = [decode_segmentation(mask, SIZE_HW) for mask in result["masks"]]
        arrays.append(result | {"masks": torch.from_numpy(np.array(stack).reshape(-1, *SIZE_HW))})
        objects = {"bbox": [], "category": [], "area": [], "iscrowd": [], "segmentation": []}
        truth = np.array([decode_segmentation(one["segmentation"], SIZE_HW) for one in row["annotations"]])
        for i, one in enumerate(row["annotations"]):
            path = tmp_path / f"{row['image_id']}-{i}.png"
            Image.fromarray(truth[i] * 9).save(path)
            values = (one["bbox"], one["category_id"], one["area"], one["iscrowd"], {"file": str(path), "id": 9})
            for name, value in zip(objects, values, strict=True):
                objects[name].append(value)
        entries.append({**row, "objects": objects})
        entries[-1].pop("annotations")
        boxes = np.array(objects["bbox"], dtype=np.float64).reshape(-1, 4)
        boxes[:, :2] += boxes[:, 2:] / 2
        labels.append(
            {
                "image_id": torch.tensor([row["image_id"]]),
                "class_labels": torch.tensor(objects["category"], dtype=torch.int64),
                "boxes": torch.from_numpy(boxes / np.array([SIZE_HW[1], SIZE_HW[0]] * 2)).float(),
                "area": torch.tensor(objects["area"]),
                "iscrowd": torch.tensor(objects["iscrowd"], dtype=torch.int64),
                "orig_size": torch.tensor(SIZE_HW),
                "size": torch.tensor(SIZE_HW),
                "masks": torch.from_numpy(truth.reshape(-1, *SIZE_HW)),
            }
        )
    assert masks_evaluated(arrays, rows).compute() == expected
    assert masks_evaluated(results, entries).compute() == expected
    assert masks_evaluated(results, labels).summary() == pytest.approx(masks_evaluated(results, rows).summary())


def test_masks_may_differ_from_their_boxes():
    row = {"image_id": 1, "height": 20, "width": 20}
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    target = {"bbox": [0, 0, 20, 20], "category_id": 0, "area": 200.0, "segmentation": encode(mask)}
    result = {"scores": [0.9], "labels": [0], "boxes": [[0.0, 0, 20, 20]], "masks": [encode(~mask)]}
    group = EvaluatorGroup(box=CocoEvaluator(CLASSES), mask=CocoEvaluator(CLASSES, iou_type="segm"))
    group.update([{"box": result, "mask": result}], [{**row, "annotations": [target]}])
    metrics = group.compute()
    assert (metrics["box"]["map"], metrics["mask"]["map"]) == (pytest.approx(1), 0)
    assert group.summary()["mask_map_50"] == 0
    assert group.table().count("AP50") == 4


def test_a_results_file_holds_the_masks(tmp_path):
    from pycocotools import mask as oracle

    results, rows = make_mask_case(1, num_images=3)
    evaluator = masks_evaluated(results, rows)
    evaluator.write_results(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    masks = [mask for result in results for mask in result["masks"]]
    assert sorted(one["segmentation"]["counts"] for one in written) == sorted(mask["counts"] for mask in masks)
    assert oracle.decode({**written[0]["segmentation"]}).shape == SIZE_HW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result, row: result.pop("masks"), "image 7: the detections lack masks"),
        (lambda result, row: result["masks"].pop(), "masks for .* detections"),
        (lambda result, row: result.update(masks=[[[1, 1, 5, 5, 1, 5]]] * 99), "masks for|run-length"),
        (lambda result, row: row["annotations"][0].pop("segmentation"), "image 7: object 0: segmentation None"),
        (lambda result, row: row.update(height=9), "object .*has size"),
        (
            lambda result, row: result.update(masks=[encode(np.ones((5, 5)))] * len(result["masks"])),
            r"predicted masks of \(5, 5\) and true ones of \(150, 200\)",
        ),
    ],
)
def test_masks_that_cannot_be_compared_are_named(change, message):
    results, rows = make_mask_case(2, num_images=2)
    result, row = results[1], {**rows[1], "image_id": 7}
    assert len(row["annotations"]) > 1
    change(result, row)
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(iou_type="segm").update([result], [row])


def test_images_without_masks_are_counted():
    nothing = {"scores": [], "labels": [], "boxes": [], "masks": []}
    row = {"image_id": 1, "height": 20, "width": 20, "annotations": []}
    evaluator = CocoEvaluator(CLASSES, iou_type="segm")
    assert evaluator.compute()["map"] == -1
    evaluator.update([nothing], [row])
    assert (evaluator.compute()["num_images"], evaluator.compute()["map"]) == (1, -1)
    target = {"bbox": [0, 0, 9, 9], "category_id": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    evaluator.update([nothing], [{**row, "image_id": 2, "annotations": [target]}])
    assert evaluator.compute()["map"] == 0
    with pytest.raises(ValueError, match="the size of the image is not known"):
        CocoEvaluator(iou_type="segm").update([nothing], [{"image_id": 3, "annotations": [target]}])
    of_boxes = CocoEvaluator(CLASSES)
    of_boxes.update([nothing], [row])
    with pytest.raises(ValueError, match="image 1: has no masks"):
        evaluator.merge(of_boxes.state())


def test_an_unknown_kind_of_overlap_is_named():
    with pytest.raises(ValueError, match="iou_type='mask': expected 'bbox' for boxes or 'segm'"):
        CocoEvaluator(iou_type="mask")


# --- panoptic quality ---


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_the_papers(seed):
    results, targets = make_panoptic_case(seed)
    expected = naive_panoptic_quality(results, targets)
    metrics = fed(PanopticEvaluator(CLASSES), results, targets).compute()
    for label, name in enumerate(CLASSES):
        got = [metrics["per_class"][name][key] for key in ("pq", "sq", "rq")]
        assert got == pytest.approx(expected.get(label, [-1] * 3), abs=1e-12)
        assert metrics["per_class"][name]["is_thing"] == (label not in STUFF)
    groups = {"": range(5), "_things": range(3), "_stuff": STUFF}
    for suffix, labels in groups.items():
        mean = np.mean([expected[label] for label in labels if label in expected], axis=0)
        assert [metrics[key + suffix] for key in ("pq", "sq", "rq")] == pytest.approx(mean, abs=1e-12)
    assert 0.2 < metrics["pq"] < 0.95
    assert metrics["num_crowds"] > 0


def test_panoptic_rows_give_the_numbers_of_their_maps(tmp_path):
    results, targets = make_panoptic_case(1)
    rows = []
    for target in targets:
        path = tmp_path / f"{target['image_id']}.png"
        ids = target["segmentation"].astype(np.uint32) * 300
        colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(path)
        objects = [
            {
                "bbox": [0, 0, 1, 1],
                "category": info["label"],
                "iscrowd": info["iscrowd"],
                "is_thing": info["is_thing"],
                "segmentation": {"file": str(path), "id": 300 * info["id"]},
            }
            for info in target["segments_info"]
        ]
        rows.append({"image_id": target["image_id"], "height": SIZE_HW[0], "width": SIZE_HW[1], "objects": objects})
    expected = fed(PanopticEvaluator(CLASSES), results, targets).compute()
    assert fed(PanopticEvaluator(CLASSES), results, rows).compute() == expected
    tensors = [{**one, "segmentation": torch.from_numpy(one["segmentation"])} for one in results]
    assert fed(PanopticEvaluator(CLASSES, stuff=STUFF), tensors, targets).compute() == expected


def test_the_truth_of_generated_scenes_has_a_quality_of_one():
    scenes = shape_scenes(3, task="panoptic")
    results = []
    for row in scenes:
        truth = read_truth(row, (96, 96), "scene")
        ids = np.zeros((96, 96), np.int32)
        for number, counts in enumerate(truth.counts, start=1):
            ids[decode_segmentation({"size": [96, 96], "counts": counts}, (96, 96)) > 0] = number
        infos = [{"id": number, "label_id": int(label)} for number, label in enumerate(truth.labels, start=1)]
        results.append({"segmentation": ids, "segments_info": infos})
    metrics = fed(PanopticEvaluator(class_names(scenes)), results, list(scenes)).compute()
    assert metrics["pq_things"] == metrics["pq_stuff"] == 1
    assert {name for name, one in metrics["per_class"].items() if not one["is_thing"]} >= {"striped", "checked"}


def test_fused_dicts_are_one_segment_and_an_empty_result_finds_nothing():
    truth = np.full((20, 20), 4)
    truth[:, :9] = 5
    infos = [{"id": 4, "label": 3, "is_thing": False}, {"id": 5, "label": 0, "is_thing": True}]
    target = {"image_id": 1, "segmentation": truth, "segments_info": infos}
    fused = [{"id": 1, "label_id": 3, "score": 0.9}, {"id": 2, "label_id": 0}, {"id": 1, "label_id": 3, "score": 0.5}]
    evaluator = PanopticEvaluator(CLASSES)
    evaluator.update([{"segmentation": torch.from_numpy((truth == 5) + 1), "segments_info": fused}], [target])
    assert evaluator.compute()["pq"] == evaluator.compute()["pq_stuff"] == 1
    assert evaluator.compute()["num_segments"] == 2
    evaluator.reset()
    evaluator.update([{"segmentation": torch.full((20, 20), -1.0), "segments_info": []}], [target])
    assert evaluator.compute()["pq"] == 0
    assert evaluator.compute()["per_class"]["dog"]["pq"] == -1
    assert PanopticEvaluator(CLASSES).compute()["pq"] == -1


def test_segments_that_cannot_be_compared_are_named():
    def error(message, result=None, target=None, **options):
        results, targets = make_panoptic_case(0, num_images=1)
        with pytest.raises(ValueError, match=message):
            PanopticEvaluator(**{"class_names": CLASSES, **options}).update(
                [{**results[0], **(result or {})}], [{**targets[0], "image_id": 7, **(target or {})}]
            )

    error("image 7: the prediction: ids of the map without segments_info", {"segments_info": []})
    error(r"image 7: the predicted map is \(5, 5\)", {"segmentation": np.zeros((5, 5)), "segments_info": []})
    error("two classes", {"segments_info": [{"id": 1, "label_id": 0}, {"id": 1, "label_id": 2}]})
    error("image 7: a found segment has the label", class_names=["cat"])
    box = {"bbox": [0, 0, 9, 9], "category": 0, "segmentation": [[0, 0, 90, 0, 90, 90, 0, 90]]}
    row = {"height": SIZE_HW[0], "width": SIZE_HW[1], "objects": [box, box]}
    results, _ = make_panoptic_case(0, num_images=1)
    with pytest.raises(ValueError, match="image 7: the target: object 1 shares pixels"):
        PanopticEvaluator(CLASSES).update(results, [{"image_id": 7, **row}])
    both = [{"id": 1, "label": 0, "is_thing": True}, {"id": 2, "label": 0, "is_thing": False}]
    target = {"image_id": 7, "segmentation": np.array([[1, 2]]), "segments_info": both}
    evaluator = PanopticEvaluator(CLASSES)
    evaluator.update([{"segmentation": np.zeros((1, 2)), "segments_info": []}], [target])
    with pytest.raises(ValueError, match=r"classes \[0\] are things in some targets and stuff in others"):
        evaluator.compute()


# --- mean IoU ---


def test_mean_iou_is_that_of_all_pixels_together():
    maps, targets = make_semantic_case(0)
    metrics = fed(SemanticEvaluator(CLASSES), maps, targets).compute()
    found, truth = np.stack(maps), np.stack([target["segmentation"] for target in targets])
    counted = truth != 255
    ious = []
    for label, name in enumerate(CLASSES):
        both = ((found == label) & (truth == label) & counted).sum()
        either = (((found == label) | (truth == label)) & counted).sum()
        ious.append(both / either)
        assert metrics["per_class"][name]["iou"] == pytest.approx(both / either)
        assert metrics["per_class"][name]["num_pixels"] == (truth == label).sum()
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    assert metrics["aacc"] == pytest.approx((found == truth)[counted].mean())
    assert 0.3 < metrics["miou"] < 0.9


def test_class_maps_that_cannot_be_compared_are_named():
    evaluator, truth = SemanticEvaluator(CLASSES), {"image_id": 7, "segmentation": np.zeros((4, 4), int)}
    with pytest.raises(ValueError, match=r"image 7: the found map is \(4, 5\)"):
        evaluator.update([np.zeros((4, 5), int)], [truth])
    with pytest.raises(ValueError, match="image 7: the prediction has the label 9"):
        evaluator.update([np.full((4, 4), 9)], [truth])
    with pytest.raises(ValueError, match="image 7: a target has the label 9"):
        evaluator.update([np.zeros((4, 4), int)], [{**truth, "segmentation": np.full((4, 4), 9)}])
    with pytest.raises(ValueError, match="expected every id from 0"):
        SemanticEvaluator({1: "a"})
    assert SemanticEvaluator(CLASSES).compute()["miou"] == -1


# --- what all share ---

KINDS = {
    "masks": (lambda: CocoEvaluator(CLASSES, iou_type="segm"), make_mask_case),
    "segments": (lambda: PanopticEvaluator(CLASSES), make_panoptic_case),
    "classes": (lambda: SemanticEvaluator(CLASSES), make_semantic_case),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_states_count_an_image_once_and_give_the_numbers_of_one_evaluator(kind):
    make_evaluator, make_case = KINDS[kind]
    results, targets = make_case(6)
    whole = fed(make_evaluator(), results, targets)
    first, second = (fed(make_evaluator(), results[part], targets[part]) for part in (slice(0, 4), slice(3, None)))
    first.merge(second.state())
    assert first.compute() == whole.compute() | {"num_duplicates": 1}
    with pytest.raises(ValueError, match="came twice with different targets"):
        first.update(results[1:2], [{**targets[2], "image_id": targets[1]["image_id"]}])


@pytest.mark.parametrize("kind", KINDS)
def test_tables_say_what_compute_says(kind):
    make_evaluator, make_case = KINDS[kind]
    evaluator = fed(make_evaluator(), *make_case(2))
    metrics, table = evaluator.compute(), evaluator.table()
    key = {"masks": "map", "segments": "pq", "classes": "iou"}[kind]
    for name, values in metrics["per_class"].items():
        row = next(line.split() for line in table.splitlines() if line.startswith(name + " "))
        assert row[1] == ("-" if values[key] < 0 else f"{values[key]:.3f}")
    assert evaluator.summary() == {name: value for name, value in metrics.items() if name != "per_class"}
