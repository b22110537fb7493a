"""Two detectors on the same images: by how much they differ, and whether chance would do that."""

import numpy as np
import pytest

from hf_detr.evaluation import CocoEvaluator
from hf_detr.evaluation.comparison import compare


def evaluator(offset_px: float, images: int = 40, num_found: int | None = None) -> CocoEvaluator:
    """One object an image, found `offset_px` to the side in the first `num_found` of them."""
    made = CocoEvaluator(["thing"])
    for image_id in range(images):
        box = [10.0 + image_id, 10.0, 20.0, 20.0]
        missing = num_found is not None and image_id >= num_found
        found = [] if missing else [[box[0] + offset_px, box[1], box[0] + offset_px + 20, box[1] + 20]]
        result = {"boxes": np.array(found).reshape(-1, 4), "scores": [0.9] * len(found), "labels": [0] * len(found)}
        objects = {"bbox": [box], "category": [0], "area": [400.0], "iscrowd": [0]}
        made.update([result], [{"image_id": image_id, "objects": objects}])
    return made


def test_a_clear_difference_is_more_than_chance_and_has_its_sign():
    found = compare(evaluator(0.0), evaluator(4.0))
    ap = found["map"]
    assert ap.value == pytest.approx(evaluator(4.0).compute()["map"] - 1.0)
    assert ap.low <= ap.value <= ap.high < 0
    assert ap.is_more_than_chance
    assert compare(evaluator(4.0), evaluator(0.0))["map"].value == pytest.approx(-ap.value)


def test_one_image_of_forty_may_be_chance_and_equal_detectors_do_not_differ():
    near = compare(evaluator(0.0), evaluator(0.0, num_found=39))["map_50"]
    assert near.value < 0
    assert not near.is_more_than_chance
    same = compare(evaluator(2.0), evaluator(2.0))["map"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.is_more_than_chance


def test_draws_follow_from_the_seed():
    first, second = evaluator(0.0), evaluator(0.0, num_found=30)
    assert compare(first, second, draws=50, seed=3) == compare(first, second, draws=50, seed=3)


def test_detectors_of_different_images_are_not_compared():
    with pytest.raises(ValueError, match="other images or other classes"):
        compare(evaluator(0.0), evaluator(0.0, images=39))
