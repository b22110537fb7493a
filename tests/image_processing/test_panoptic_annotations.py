"""Panoptic annotations: every segment of the PNG is an object with its box and mask."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.detr.image_processing_detr import DetrImageProcessor as Stock

from hf_detr import DetrImageProcessor

SIZE = {"height": 40, "width": 64}  # exact, so that stock's canvas is the image
SEGMENTS = [
    {"id": 3, "category_id": 7, "iscrowd": 0, "area": 600, "bbox": [0, 0, 64, 10]},
    {"id": 70000, "category_id": 1, "iscrowd": 0, "area": 200, "bbox": [8, 20, 20, 10]},
    {"id": 256, "category_id": 1, "iscrowd": 1, "area": 100, "bbox": [40, 20, 10, 10]},
]


@pytest.fixture
def folder(tmp_path):
    ids = np.zeros((40, 64), np.uint32)
    ids[:10], ids[20:30, 8:28], ids[20:30, 40:50] = 3, 70000, 256
    colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "one.png")
    return tmp_path


def labels(folder, segments=SEGMENTS, annotation=None, processor=None, **options):
    processor = processor or DetrImageProcessor(size=SIZE)
    annotation = {"image_id": 5, "file_name": "one.png", "segments_info": segments} | (annotation or {})
    image = Image.new("RGB", (64, 40))
    return processor(image, annotation, masks_path=folder, return_tensors="pt", **options)["labels"][0]


def test_segments_are_objects_with_masks_and_crowds_are_left_out(folder):
    label = labels(folder)
    assert label["class_labels"].tolist() == [7, 1]
    assert label["masks"].dtype == torch.uint8
    assert label["masks"].sum((1, 2)).tolist() == [640, 200]
    assert label["masks"][1, 20:30, 8:28].all()
    assert label["area"].tolist() == [600, 200]
    assert torch.allclose(label["boxes"][1], torch.tensor([18 / 64, 25 / 40, 20 / 64, 10 / 40]))
    assert "masks" not in labels(folder, return_segmentation_masks=False)


def test_masks_and_labels_are_stocks_but_for_crowds_and_a_pixel_of_the_box(folder):
    stock = labels(folder, processor=Stock(size=SIZE, format="coco_panoptic"))
    ours = labels(folder, SEGMENTS[:2])
    assert torch.equal(ours["masks"].bool(), stock["masks"][:2].bool())
    assert torch.equal(ours["class_labels"], stock["class_labels"][:2])
    if stock["class_labels"].numel() != 3 or torch.allclose(ours["boxes"], stock["boxes"][:2]):
        pytest.fail("stock leaves crowds out, or its boxes end at the last pixel's edge: say so in the differences")
    pixel = torch.tensor([1 / 64, 1 / 40])
    assert torch.allclose(ours["boxes"][:, 2:] - pixel, stock["boxes"][:2, 2:], atol=1e-6)


def test_boxes_and_areas_that_are_not_given_are_the_masks(folder):
    bare = [{name: segment[name] for name in ("id", "category_id")} for segment in SEGMENTS[:2]]
    ours, given = labels(folder, bare), labels(folder, SEGMENTS[:2])
    assert torch.equal(ours["boxes"], given["boxes"])
    assert ours["area"].tolist() == [640, 200]


def test_masks_are_resized_with_their_image(folder):
    label = labels(folder, size={"height": 80, "width": 128})
    assert label["masks"].shape == (2, 80, 128)
    assert torch.equal(label["masks"][:, ::2, ::2], labels(folder)["masks"])


def test_annotations_of_boxes_need_no_masks_whatever_the_format(folder):
    processor = DetrImageProcessor(size=SIZE, format="coco_panoptic")
    annotation = {"image_id": 5, "annotations": [{"bbox": [1, 2, 3, 4], "category_id": 0}]}
    label = processor(Image.new("RGB", (64, 40)), annotation, return_tensors="pt")["labels"][0]
    assert label["boxes"].shape == (1, 4)
    assert "masks" not in label


@pytest.mark.parametrize(
    ("segments", "annotation", "message"),
    [
        ([{"id": 9, "category_id": 1}], {}, r"image_id 5\): segment 0: .*one.png: no pixel has the id 9"),
        ([{"id": 9}], {}, r"image_id 5\): segment 0 lacks category_id"),
        (SEGMENTS, {"file_name": "../one.png"}, "leaves the folder"),
        (SEGMENTS, {"file_name": None}, "needs 'file_name'"),
        (SEGMENTS, {"file_name": "two.png"}, "two.png: no such PNG"),
    ],
)
def test_what_the_png_has_not_is_named(folder, segments, annotation, message):
    with pytest.raises(ValueError, match=message):
        labels(folder, segments, annotation)
    with pytest.raises(ValueError, match="needs masks_path, the folder of the PNGs"):
        labels(None)
