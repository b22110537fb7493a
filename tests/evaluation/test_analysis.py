"""What stands behind an AP: thresholds, confusion, error shares, the worst images, and the page that shows them."""

import re

import numpy as np
import pytest

from hf_detr.evaluation import CocoEvaluator
from hf_detr.evaluation.analysis import analyse
from hf_detr.visualization import draw_detections
from hf_detr.visualization.report_page import write_report

from .evaluation_cases import make_case
from .mask_cases import encode

CAT, DOG = 0, 1
NAMES = ["cat", "<dog> & $x_1$"]
BOX, OTHER = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 70.0]


def target(image_id: int, *objects: tuple[int, list[float]], crowd: bool = False) -> dict:
    boxes = [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in objects]
    columns = {"bbox": boxes, "category": [label for label, _ in objects], "area": [w * h for _, _, w, h in boxes]}
    return {"image_id": image_id, "objects": {**columns, "iscrowd": [int(crowd)] * len(objects)}}


def found(*detections: tuple[int, list[float], float]) -> dict:
    labels, boxes, scores = zip(*detections, strict=True) if detections else ((), (), ())
    return {"labels": np.array(labels, int), "boxes": np.array(boxes, float).reshape(-1, 4), "scores": np.array(scores)}


@pytest.fixture
def evaluator() -> CocoEvaluator:
    """Cats are found at 0.9 and 0.6, with a false one of 0.7; a dog is taken for a cat; one image holds a crowd."""
    evaluator = CocoEvaluator(NAMES)
    evaluator.update(
        [
            found((CAT, BOX, 0.9)),
            found((CAT, BOX, 0.6), (CAT, OTHER, 0.7)),
            found((CAT, OTHER, 0.8)),
            found((DOG, BOX, 0.5), (DOG, BOX, 0.4)),
            found((DOG, BOX, 0.95)),
        ],
        [
            target(7, (CAT, BOX)),
            target(8, (CAT, BOX)),
            target(2**40, (DOG, OTHER)),
            target(9, (DOG, BOX)),
            target(10, (DOG, BOX), crowd=True),
        ],
    )
    return evaluator


def test_the_best_threshold_is_the_one_with_the_most_f1(evaluator):
    analysis = analyse(evaluator)
    cat, dog = (analysis.curves[name] for name in NAMES)
    assert cat.scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4])
    assert cat.recall.tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0])
    assert cat.f1.tolist() == pytest.approx([2 / 3, 2 / 4, 2 / 5, 4 / 6])
    assert (cat.threshold, cat.best_f1) == pytest.approx((0.85, 2 / 3))  # of two alike, the stricter
    assert dog.num_targets == 2  # the crowd is no object, and what lies on it is no error
    assert dog.scores.tolist() == [0.5, 0.4]
    assert dog.threshold == pytest.approx(0.45)


def test_confusion_errors_and_suspects_name_what_went_wrong(evaluator):
    analysis = analyse(evaluator)
    assert analysis.metrics == evaluator.compute()
    assert analysis.error_counts["Cls"] == 1  # the dog that is taken for a cat
    assert analysis.error_counts["Dupe"] == 1
    assert analysis.error_counts["Bkg"] == 1
    assert analysis.confusion.shape == (3, 3)
    assert analysis.confusion[:2].sum() == 4  # every object stands in one cell of its row
    assert [row[:3] for row in analysis.label_suspects] == [(2**40, NAMES[DOG], NAMES[CAT])]
    assert analysis.ap_by_objects.keys() == {"1"}
    assert analysis.ap_by_objects["1"][1] == 4


def test_the_worst_image_comes_first_and_a_perfect_one_not_at_all(evaluator):
    analysis = analyse(evaluator)
    threshold = analysis.overall.threshold
    assert 2**40 in analysis.worst
    assert 7 not in analysis.worst
    wrong = {image_id: sum(errors) for image_id, errors in analysis.image_errors.items()}
    assert [wrong[image_id] for image_id in analysis.worst] == sorted((n for n in wrong.values() if n), reverse=True)
    assert 0 < threshold < 1


def test_without_detections_or_objects_there_is_no_threshold_and_no_error(tmp_path):
    empty = CocoEvaluator(NAMES)
    with pytest.raises(ValueError, match="has seen no image"):
        analyse(empty)
    empty.update([found()], [target(1)])
    analysis = analyse(empty)
    assert analysis.overall.threshold is None
    assert analysis.worst == []
    write_report(analysis, tmp_path / "page.html", "nothing")
    assert "No image with a wrong or a missed object" in (tmp_path / "page.html").read_text()


def test_masks_that_fill_their_boxes_have_the_analysis_of_boxes():
    """Of every error that `make_case` has: hotcoco compares masks where the evaluator does."""
    results, rows = make_case(3, num_images=12)
    boxes, masks = CocoEvaluator(list("abcd")), CocoEvaluator(list("abcd"), iou_type="segm")
    for result, row in zip(results, rows, strict=True):
        whole = np.clip(result["boxes"].round(), 0, 600).astype(int)  # pixels
        wide = np.all(whole[:, 2:] > whole[:, :2], axis=1)
        result = {name: values[wide] for name, values in result.items()} | {"boxes": whole[wide].astype(np.float32)}
        result["labels"][::5] = (result["labels"][::5] + 1) % 4  # taken for another class
        annotations = []
        for one in row["annotations"]:
            x, y, w, h = (round(side) for side in one["bbox"])
            annotations.append({**one, "bbox": [x, y, w, h], "segmentation": filled([x, y, x + w, y + h])})
        target = {"image_id": row["image_id"], "height": 600, "width": 600, "annotations": annotations}
        boxes.update([result], [target])
        masks.update([{**result, "masks": [filled(box) for box in result["boxes"].astype(int).tolist()]}], [target])
    one, other = analyse(boxes), analyse(masks)
    assert (one.iou_type, other.iou_type) == ("bbox", "segm")
    assert 0 < one.metrics["map"] < 1
    assert one.confusion[:-1, :-1].sum() > np.trace(one.confusion) > 0
    np.testing.assert_array_equal(one.confusion, other.confusion)
    for name in ("metrics", "error_ap", "error_counts", "calibration", "ap_by_objects", "worst", "image_errors"):
        assert getattr(one, name) == getattr(other, name), name
    assert [c.threshold for c in one.curves.values()] == [c.threshold for c in other.curves.values()]


def filled(box_xyxy) -> dict:
    """A mask that is all of a box."""
    mask = np.zeros((600, 600), bool)
    mask[box_xyxy[1] : box_xyxy[3], box_xyxy[0] : box_xyxy[2]] = True
    return encode(mask)


def test_the_page_needs_nothing_else_and_escapes_every_text(evaluator, tmp_path):
    image = draw_detections(np.zeros((80, 80, 3), np.uint8), found((CAT, BOX, 0.9)), dict(enumerate(NAMES)))
    write_report(analyse(evaluator), tmp_path / "a" / "page.html", "<script>alert(1)</script>", [("<b>one", image)])
    page = (tmp_path / "a" / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;b&gt;one" in page
    assert "&lt;dog&gt; &amp;" in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "url(" not in page
    assert page.count("<img") == 5  # four plots and the image
