"""Boxes, areas and masks stay on the pixels of their objects: found again by their colours."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hf_detr import (
    DetectionCollator,
    DetectionTransform,
    DetrImageProcessor,
    load_detection_dataset,
    shape_scenes,
    transform_dataset,
)
from hf_detr.boxes import cxcywh_to_xyxy
from hf_detr.data.labelled_image import MIN_SIDE_PX, LabelledImage, visible_part
from hf_detr.data.strong_augmentation import (
    ColourJitter,
    CopyPaste,
    FlipAndResize,
    LargeScaleJitter,
    MixUp,
    Mosaic,
    StrongAugmentation,
)

SIZE = {"shortest_edge": 80, "longest_edge": 133}
ALL = [
    Mosaic(),
    MixUp(),
    CopyPaste(),
    LargeScaleJitter(),
    ColourJitter(),
    FlipAndResize(SIZE),
    StrongAugmentation(SIZE),
]


def scene(categories=(), seed=0, size_wh=(120, 90), masks=False, **columns) -> dict:
    """Black, with an object of each category, apart from each other; its colour's channels are the bits of 1 + it."""
    random, image = np.random.default_rng(seed), Image.new("RGB", size_wh)
    draw, cell = ImageDraw.Draw(image), size_wh[0] // max(1, len(categories))
    objects = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []} | (
        {"segmentation": []} if masks else {}
    )
    for k, category in enumerate(categories):
        w, h = int(random.integers(12, cell - 4)), int(random.integers(12, size_wh[1] - 4))
        x, y = k * cell + int(random.integers(1, cell - w - 1)), int(random.integers(0, size_wh[1] - h))
        colour = tuple(255 * (category + 1 >> bit & 1) for bit in range(3))
        (draw.ellipse if masks else draw.rectangle)((x, y, x + w - 1, y + h - 1), fill=colour)
        values = {"id": k, "bbox": [float(x), float(y), float(w), float(h)], "category": category, "iscrowd": 0}
        if masks:
            values["segmentation"] = codes(image) == category + 1
        values["area"] = float(values["segmentation"].sum() if masks else w * h)
        for name, value in values.items():
            objects[name].append(value)
    row = {"image": image, "image_id": seed, "width": size_wh[0], "height": size_wh[1], "objects": objects}
    return {**row, "objects": {**objects, **columns}}


def codes(image) -> np.ndarray:
    """(h, w): 1 + the category that is seen at a pixel, 0 for the background of any kind."""
    return ((np.asarray(image).astype(int) > 127) * (1, 2, 4)).sum(axis=2)


def several(seed, **options):
    """A row, and a function that gives three others; no category is in two of them."""
    sizes = [(120, 90), (90, 120), (100, 100), (140, 60)]
    groups = ((0, 1), (2, 3), (4, 5), (6,))
    rows = [scene(g, 10 * seed + k, s, **options) for k, (g, s) in enumerate(zip(groups, sizes, strict=True))]
    return rows[0], itertools.cycle(rows[1:]).__next__


def assert_objects_are_where_their_colours_are(row, tolerance_px=1.01):
    seen, objects = codes(row["image"]), row["objects"]
    assert (row["width"], row["height"]) == row["image"].size
    assert len({len(values) for values in objects.values()}) == 1
    masks = objects.get("segmentation", [None] * len(objects["bbox"]))
    for (x, y, w, h), category, mask, area in zip(
        objects["bbox"], objects["category"], masks, objects["area"], strict=True
    ):
        assert min(x, y) >= 0
        assert x + w <= row["width"] + 1e-6
        assert y + h <= row["height"] + 1e-6
        assert min(w, h) >= MIN_SIDE_PX
        rows, columns = np.nonzero(seen == category + 1)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(edges, (x, y, x + w, y + h), atol=tolerance_px)
        if mask is not None:
            assert mask.shape == seen.shape
            assert (mask != (seen == category + 1)).sum() <= 2 * (w + h) + 4  # at most a pixel along the edge
            assert area == mask.sum()
        else:
            assert abs(area - len(rows)) <= tolerance_px * 2 * (w + h) + 4


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    "augment",
    [
        Mosaic(),
        CopyPaste(),
        LargeScaleJitter(),
        FlipAndResize(SIZE),
        StrongAugmentation(SIZE, mosaic=Mosaic(0), then=(CopyPaste(),)),
        StrongAugmentation(SIZE, mosaic=Mosaic(1), then=()),
    ],
    ids=lambda augment: type(augment).__name__,
)
def test_every_box_and_mask_is_around_the_pixels_of_its_object(augment, masks):
    kept = 0
    for seed in range(40):
        torch.manual_seed(seed)
        result = augment(*several(seed, masks=masks))
        assert_objects_are_where_their_colours_are(result)
        kept += len(result["objects"]["bbox"])
    assert kept > 60


@pytest.mark.parametrize("seed", range(10))
def test_blended_images_have_the_objects_of_both(seed):
    torch.manual_seed(seed)
    red, others = scene((0,), seed, masks=True), scene((1, 3), seed + 50, masks=True)  # green and blue
    row = MixUp(least=0.5)(red, lambda: others)
    assert row["objects"]["category"] == [0, 1, 3]
    assert row["objects"]["bbox"] == red["objects"]["bbox"] + others["objects"]["bbox"]
    seen = np.asarray(row["image"]) > 64
    for mask, area, channel in zip(row["objects"]["segmentation"], row["objects"]["area"], (0, 1, 2), strict=True):
        assert np.array_equal(mask != 0, seen[..., channel])
        assert area == mask.sum()


def test_an_image_of_another_shape_is_blended_at_the_shape_of_the_first():
    for seed in range(10):
        torch.manual_seed(seed)
        row = MixUp(least=0.0)(scene(), lambda: scene((0, 1), 5, (70, 150)))
        assert row["image"].size == (120, 90)


def test_colours_change_and_nothing_else_does():
    row = scene((0, 1, 2))
    torch.manual_seed(1)
    result = ColourJitter(contrast=(0.5, 0.6))(row)
    assert not np.array_equal(np.asarray(result["image"]), np.asarray(row["image"]))
    assert result["objects"] == row["objects"]


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
def test_a_call_takes_one_random_number_and_the_size_of_its_result_is_told_beforehand(augment):
    augment = pickle.loads(pickle.dumps(augment))
    results = []
    for seed in (3, 3, 4):
        row, others = several(1)
        torch.manual_seed(seed)
        result = augment(row, lambda others=others: (torch.rand(5), others())[1])
        after = torch.rand(())
        results.append(np.asarray(result["image"]))
        torch.manual_seed(seed)
        assert augment.final_hw((90, 120)) == result["image"].size[::-1]
        assert torch.rand(()) == after
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
def test_images_without_objects_and_of_a_pixel_are_augmented(augment):
    for size_wh, seed in itertools.product([(120, 90), (1, 1), (2, 3), (300, 1)], range(4)):
        torch.manual_seed(seed)
        result = augment(scene(size_wh=size_wh), lambda size_wh=size_wh: scene(size_wh=size_wh))
        assert result["objects"]["bbox"] == []
        assert (result["width"], result["height"]) == result["image"].size


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
def test_grey_images_stay_grey_beside_those_of_colours(augment):
    grey = {**scene((0,)), "image": scene((0,))["image"].convert("L")}
    torch.manual_seed(0)
    assert augment(grey, lambda: scene((1, 2)))["image"].mode == "L"


def test_crowds_stay_crowds_and_are_not_pasted():
    row, crowd = scene((0, 1), iscrowd=[1, 0]), scene((2, 3), iscrowd=[1, 1])
    for seed in range(20):
        torch.manual_seed(seed)
        assert CopyPaste()(row, lambda: crowd)["objects"] == row["objects"]
        objects = Mosaic()(row, lambda: crowd)["objects"]
        flags = dict(zip(objects["category"], objects["iscrowd"], strict=True))
        assert flags == {category: {0: 1, 1: 0, 2: 1, 3: 1}[category] for category in flags}


def test_what_is_cut_off_or_too_small_leaves_and_what_fills_the_view_stays():
    row = {"image": Image.new("RGB", (100, 100)), "objects": {"bbox": [[60.0, 40.0, 20.0, 20.0]], "category": [0]}}
    image = LabelledImage.read(row)
    for width, kept in ((65, 1), (63, 0)):  # a quarter and less than a fifth of it, at the edge of a large view
        assert len(image.window((0, 0, 100, width), (100, width))) == kept
    assert len(image.window((45, 65, 5, 5), (50, 50))) == 1  # a sixteenth of it fills the view
    assert len(image.window((0, 0, 100, 100), (9, 9))) == 0
    assert len(image.resized((9, 9))) == 1


def test_a_covered_box_shrinks_to_what_is_left_of_it_in_view():
    box = np.array([10.0, 10.0, 30.0, 20.0])
    for covers, wanted, share in (
        ([(0, 0, 20, 40)], (20, 10, 30, 20), 0.5),  # one side
        ([(0, 0, 20, 14), (5, 14, 20, 40)], (20, 10, 30, 20), 0.5),  # one side, by two together
        ([(20, 5, 40, 15)], (10, 10, 30, 20), 0.75),  # a corner
        ([(15, 0, 20, 40)], (10, 10, 30, 20), 0.75),  # across
        ([(0, 0, 40, 15), (0, 15, 15, 40)], (15, 15, 30, 20), 0.375),
        ([(40, 0, 50, 40)], (10, 10, 30, 20), 1.0),  # beside
        ([(0, 0, 40, 40)], (0, 0, 0, 0), 0.0),
    ):
        found, left = visible_part(box, [np.array(one, dtype=float) for one in covers])
        assert found.tolist() == list(map(float, wanted))
        assert left == pytest.approx(share)


def test_the_closing_of_the_strong_augmentation_is_a_flip_at_its_size():
    strong = StrongAugmentation(SIZE, flip_probability=0.0)
    row = strong.closing(scene((0, 1), size_wh=(133, 80)))
    assert row["objects"]["bbox"] == scene((0, 1), size_wh=(133, 80))["objects"]["bbox"]
    assert np.array_equal(np.asarray(row["image"]), np.asarray(scene((0, 1), size_wh=(133, 80))["image"]))
    assert Mosaic().closing is None


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Mosaic, {"probability": 1.5}, "Mosaic: probability=1.5 is not between 0 and 1"),
        (MixUp, {"least": 0.7}, "least=0.7"),
        (CopyPaste, {"most": 0}, "most=0"),
        (LargeScaleJitter, {"scale": (2.0, 1.0)}, r"scale=\(2.0, 1.0\) must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)
    with pytest.raises(ValueError, match=r"Mosaic mixes an image with others .*transform_dataset"):
        Mosaic()(scene())


# ---- in the pipeline


@pytest.mark.parametrize("masks", [False, True])
def test_the_strong_transform_takes_rows_of_its_data_set_and_gives_labels_of_their_pixels(masks):
    scenes = shape_scenes(6, 48, task="panoptic" if masks else "instance")
    processor = DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 60})
    rows = transform_dataset(scenes, DetectionTransform(processor, "strong", masks=masks, boxes_from_masks=masks))
    for seed in range(3):
        torch.manual_seed(seed)
        batch = DetectionCollator()([rows[index] for index in range(6)])
        assert batch["pixel_values"].shape == (6, 3, 40, 40)
        for label in batch["labels"]:
            assert ("masks" in label) == masks
            assert len(label["boxes"]) == len(label["class_labels"]) == len(label["area"])
            corners = cxcywh_to_xyxy(label["boxes"])
            assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()


def test_images_are_mixed_with_the_rows_of_their_own_data_set_as_those_before_left_them(coco_dir):
    seen = []

    def note(row):
        seen.append(row["image_id"])
        return row

    dataset = load_detection_dataset(coco_dir)["train"]
    transform = DetectionTransform(DetrImageProcessor(size=SIZE), [note, Mosaic()])
    with pytest.raises(ValueError, match=r"augment Mosaic\(.*use transform_dataset\(dataset, transform\)"):
        dataset.with_transform(transform)[0]
    rows = transform_dataset(dataset.select([0, 2]), transform)
    seen.clear()
    for _ in range(8):
        rows[0]
    assert set(seen) == {100, 102}
    assert len(seen) >= 16
    with pytest.raises(ValueError, match=r"mix images with others, and a stream has only the next one"):
        transform_dataset(load_detection_dataset(coco_dir, streaming=True), transform)


def test_a_box_that_is_no_number_is_named_and_not_dropped():
    row = scene((0, 1))
    row["objects"]["bbox"][1][2] = float("nan")
    with pytest.raises(ValueError, match="image_id 0: target boxes hold a NaN or an infinity, first object 1"):
        LargeScaleJitter()(row)


def test_a_damaged_image_is_named_when_another_is_mixed_with_it(coco_dir):
    rows = transform_dataset(
        load_detection_dataset(coco_dir)["train"], DetectionTransform(DetrImageProcessor(size=SIZE), Mosaic())
    )
    (coco_dir / "train2017" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"image_id 101 \(.*b\.png\): no such file"):
        list(rows.select([0] * 12))


def test_for_the_closing_a_transform_leaves_out_what_is_to_end():
    processor = DetrImageProcessor(size=SIZE)
    assert DetectionTransform(processor, "paper").for_closing() is None
    strong = DetectionTransform(processor, [Mosaic(), ColourJitter(), StrongAugmentation(SIZE)])
    [left] = strong.for_closing().augment
    assert type(left) is FlipAndResize
    assert len(strong.augment) == 3
