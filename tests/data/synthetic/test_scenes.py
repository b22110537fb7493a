import io
import time

import numpy as np
import pytest

from hf_detr.data.schema import class_names, is_detection_dataset, stuff_ids
from hf_detr.data.synthetic.digits import DIGIT_NAMES, digit_scenes
from hf_detr.data.synthetic.shapes import SHAPE_NAMES, shape_scenes
from hf_detr.data.synthetic.textures import TEXTURE_NAMES

from ..mask_folders import masks_of


@pytest.mark.parametrize(("make", "names"), [(digit_scenes, DIGIT_NAMES), (shape_scenes, SHAPE_NAMES)])
def test_scenes_have_the_schema_and_their_boxes_lie_inside(make, names):
    scenes = make(40, image_size=64, max_objects=4, seed=3)
    assert is_detection_dataset(scenes)
    assert class_names(scenes) == list(names)
    for row in scenes:
        assert row["image"].size == (row["width"], row["height"]) == (64, 64)
        assert 1 <= len(row["objects"]["bbox"]) <= 4
        for x, y, w, h in row["objects"]["bbox"]:
            assert x >= 0
            assert y >= 0
            assert x + w <= 64
            assert y + h <= 64
            assert w >= 1
            assert h >= 1
    assert scenes.to_dict()["image_id"] == list(range(40))
    assert {one for row in scenes for one in row["objects"]["category"]} == set(range(len(names)))


@pytest.mark.parametrize("make", [digit_scenes, shape_scenes])
def test_scenes_follow_from_their_seed_and_not_from_how_many_there_are(make):
    few, many, other = make(3, image_size=48), make(6, image_size=48), make(3, image_size=48, seed=1)
    as_bytes = lambda scenes: [one["bytes"] for one in scenes.to_dict()["image"]]  # noqa: E731
    assert as_bytes(few) == as_bytes(many)[:3]
    assert few["objects"][:] == many["objects"][:3]
    assert not set(as_bytes(few)) & set(as_bytes(other))
    assert not set(as_bytes(few)) & set(as_bytes(make(3, image_size=48, split="test")))


def test_boxes_overlap_by_a_tenth_at_most():
    for row in digit_scenes(60, max_objects=8):
        boxes = row["objects"]["bbox"]
        for i, (x, y, w, h) in enumerate(boxes):
            for left, top, width, height in boxes[:i]:
                across = max(0, min(x + w, left + width) - max(x, left))
                down = max(0, min(y + h, top + height) - max(y, top))
                assert across * down <= 0.1 * min(w * h, width * height)


def test_boxes_are_tight_around_the_ink():
    """On a picture with and without its objects, the pixels that differ fill the boxes to their edges."""
    from hf_detr.data.synthetic import scenes as module

    rng = np.random.default_rng(0)
    plain = np.full((40, 40, 3), 128.0, dtype=np.float32)
    coverage = module.crop_to_ink(np.pad(np.ones((7, 5), dtype=np.float32), ((3, 1), (2, 6))))
    assert coverage.shape == (7, 5)
    painted = plain.copy()
    module._stamp(rng, painted, coverage, (10, 20, 5, 7))
    rows, columns = np.nonzero((painted != plain).any(-1))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 20, 15, 27)
    assert np.abs(painted - plain)[20:27, 10:15].mean() > 30  # and can be seen


def test_train_and_test_scenes_use_different_scans():
    from hf_detr.data.synthetic.digits import _scans

    for splits in _scans().values():
        train, test = ({scan.tobytes() + bytes(scan.size) for scan in splits[name]} for name in ("train", "test"))
        assert len(splits["train"]) > 100
        assert len(splits["test"]) > 20
        assert not train & test


def test_chosen_digits_are_the_classes():
    scenes = digit_scenes(20, image_size=48, digits=[7, 3])
    assert class_names(scenes) == ["three", "seven"]
    assert {one for row in scenes for one in row["objects"]["category"]} == {0, 1}


def test_five_hundred_scenes_take_less_than_three_seconds_of_work():
    digit_scenes(1)  # scans are read once
    start = time.process_time()
    scenes = digit_scenes(500)
    assert time.process_time() - start < 3
    assert sum(len(one["bytes"]) for one in scenes.to_dict()["image"]) < 500 * 40_000
    assert io.BytesIO(scenes.to_dict()["image"][0]["bytes"]).read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of"),
        ({"digits": []}, "digits must be"),
        ({"digits": [11]}, "digits must be"),
        ({"object_size": (40, 20)}, "object_size"),
        ({"image_size": 8}, "image_size >= 16"),
        ({"max_objects": 0}, "max_objects >= 1"),
    ],
)
def test_impossible_scenes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_scenes(1, **arguments)


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes must be"):
        shape_scenes(1, shapes=["blob"])


@pytest.mark.parametrize("make", [digit_scenes, shape_scenes])
def test_boxes_do_not_depend_on_the_task(make):
    plain, instance, panoptic = (make(8, image_size=48, task=task) for task in ("detection", "instance", "panoptic"))
    as_bytes = lambda scenes: [one["bytes"] for one in scenes.to_dict()["image"]]  # noqa: E731
    assert as_bytes(plain) == as_bytes(instance)
    for row, with_masks, with_stuff in zip(plain, instance, panoptic, strict=True):
        count = len(row["objects"]["bbox"])
        for name in ("bbox", "category"):
            assert row["objects"][name] == with_masks["objects"][name] == with_stuff["objects"][name][:count]
    assert make(2, image_size=48, task="panoptic").to_dict() == panoptic.select(range(2)).to_dict()
    assert is_detection_dataset(panoptic)


def test_masks_are_exactly_the_pixels_that_an_object_changed(monkeypatch):
    """Painted one by one: an object's mask is its ink less what later objects cover."""
    from hf_detr.data.synthetic import scenes as module

    seen, original = [], module._stamp

    def stamp(rng, picture, coverage, box):
        seen[-1].append((coverage > module._INK, box))
        original(rng, picture, coverage, box)

    background = module._background
    monkeypatch.setattr(module, "_stamp", stamp)
    monkeypatch.setattr(module, "_background", lambda rng, size: seen.append([]) or background(rng, size))
    for row, stamps in zip(shape_scenes(10, 64, max_objects=8, task="instance"), seen, strict=True):
        owner = np.full((64, 64), -1)
        for number, (ink, (x, y, w, h)) in enumerate(stamps):
            owner[y : y + h, x : x + w][ink] = number
        for number, mask in enumerate(masks_of(row)):
            assert np.array_equal(mask, owner == number)
            assert row["objects"]["area"][number] == mask.sum()
            x, y, w, h = map(int, row["objects"]["bbox"][number])
            assert mask[y : y + h, x : x + w].sum() == mask.sum()


def test_every_pixel_of_a_panoptic_scene_is_one_thing_or_stuff():
    for make, names in ((digit_scenes, DIGIT_NAMES), (shape_scenes, SHAPE_NAMES)):
        scenes = make(12, image_size=48, task="panoptic")
        assert class_names(scenes) == [*names, *TEXTURE_NAMES]
        for row in scenes:
            assert np.array_equal(np.sum(masks_of(row), axis=0), np.ones((48, 48)))
            stuff = [one for one in row["objects"]["category"] if one >= len(names)]
            assert len(stuff) == len(set(stuff)) > 0
            assert row["objects"]["is_thing"] == [one < len(names) for one in row["objects"]["category"]]
        assert set(stuff_ids(scenes)) <= set(range(len(names), len(names) + 4))
    with pytest.raises(ValueError, match="task must be one of"):
        shape_scenes(1, task="masks")
