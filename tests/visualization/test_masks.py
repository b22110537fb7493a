"""Masks lie on what they cover, in the colour of their class; a map of segments stands beside its image."""

import numpy as np
import pytest
import torch
from hotcoco import mask as coco_mask
from PIL import Image

from hf_detr import shape_scenes
from hf_detr.visualization import class_color, draw_masks, draw_panoptic, save_masks_grid

ID2LABEL = {0: "cat", 1: "dog", 2: "sky"}
GREY = (100, 100, 100)


def masks():
    stack = np.zeros((2, 700, 800), np.uint8)
    stack[0, 200:600, 100:400], stack[1, 50:300, 500:700] = 1, 1
    return stack


def detections(**changes):
    rles = [
        {**rle, "counts": rle["counts"].decode()}
        for rle in coco_mask.encode(np.asfortranarray(masks().transpose(1, 2, 0)))
    ]
    boxes = [[100.0, 200.0, 400.0, 600.0], [500.0, 50.0, 700.0, 300.0]]
    return {"scores": [0.9, 0.2], "labels": [0, 1], "boxes": boxes, "masks": rles} | changes


def segments():
    """Two cats and the sky above, 8 rows of no segment below."""
    segmentation = torch.zeros((40, 60), dtype=torch.int32)
    segmentation[:32] = 1
    segmentation[10:20, 5:15], segmentation[10:20, 40:50] = 2, 7
    infos = [
        {"id": 1, "label_id": 2, "was_fused": True, "score": 0.8},
        {"id": 2, "label_id": 0, "was_fused": False, "score": 0.9},
        {"id": 1, "label_id": 2, "was_fused": True, "score": 0.7},
        {"id": 7, "label_id": 0, "was_fused": False, "score": 0.4},
    ]
    return {"segmentation": segmentation, "segments_info": infos}


def image(width=800, height=700):
    return Image.new("RGB", (width, height), GREY)


def mixed(color):
    return tuple(round(0.55 * 100 + 0.45 * value) for value in color)


def pixel(drawing, x, y):
    return drawing.getpixel((x, y))


def test_masks_shine_through_and_the_rest_stays():
    drawing = draw_masks(image(), detections(), ID2LABEL)
    assert pixel(drawing, 250, 400) == mixed(class_color(0))
    assert pixel(drawing, 600, 200) == mixed(class_color(1))
    assert pixel(drawing, 450, 650) == GREY
    assert pixel(drawing, 100, 400) == class_color(0)  # its box


def test_masks_below_the_threshold_are_not_drawn():
    drawing = draw_masks(image(), detections(), ID2LABEL, threshold=0.5)
    assert pixel(drawing, 250, 400) == mixed(class_color(0))
    assert pixel(drawing, 600, 200) == GREY


def test_every_form_of_masks_is_drawn_alike():
    expected = np.asarray(draw_masks(image(), detections(), ID2LABEL))
    for form in (masks(), torch.from_numpy(masks()).bool()):
        assert np.array_equal(np.asarray(draw_masks(image(), detections(masks=form), ID2LABEL)), expected)
    infos = [{"id": 4, "label_id": 0, "score": 0.9}, {"id": 9, "label_id": 1, "score": 0.2}]
    result = {"segmentation": torch.from_numpy(4 * masks()[0] + 9 * masks()[1]).int(), "segments_info": infos}
    assert np.array_equal(np.asarray(draw_masks(image(), result, ID2LABEL)), expected)


def test_an_edge_is_one_pixel_of_the_drawing_however_small_the_image():
    result = segments()
    drawing = draw_masks(image(60, 40), result, threshold=0.85)
    assert drawing.size == (660, 440)
    assert pixel(drawing, 11 * 10, 11 * 15) == mixed(class_color(0))
    assert draw_masks(image(60, 40), result, enlarge=False).size == (60, 40)


def test_the_map_stands_beside_its_image_with_every_class_in_the_legend():
    drawing = draw_panoptic(image(60, 40), segments(), ID2LABEL)
    colors = {color for _, color in drawing.getcolors(2**20)}
    assert {class_color(0), class_color(2), GREY} <= colors
    assert class_color(1) not in colors
    pixels = np.asarray(drawing)
    cat = np.argwhere((pixels == class_color(0)).all(-1))
    assert (pixels[:, :660] == GREY).all(-1).sum() > 600 * 400  # the image
    assert cat[:, 1].min() < 40  # in the legend
    assert cat[:, 1].max() > 660  # in the map, one of two: the other is of another shade
    sky = (pixels == class_color(2)).all(-1)
    assert sky.sum() > 11**2 * (60 * 32 - 2 * 100) * 0.9


def test_a_map_without_segments_and_a_true_map_are_drawn():
    nothing = {"segmentation": torch.full((40, 60), -1.0), "segments_info": []}
    assert draw_panoptic(image(60, 40), nothing).width > 2 * 660
    assert draw_masks(image(60, 40), nothing).getcolors() == [(660 * 440, GREY)]
    truth = {"segmentation": np.ones((40, 60), int), "segments_info": [{"id": 1, "label": 1, "is_thing": False}]}
    assert class_color(1) in {color for _, color in draw_panoptic(image(60, 40), truth).getcolors(2**20)}


def test_the_true_map_of_a_row_is_drawn():
    row = shape_scenes(1, task="panoptic")[0]
    drawn = {color for _, color in draw_panoptic(row["image"], row).getcolors(2**20)}
    assert {class_color(label) for label in row["objects"]["category"]} <= drawn


def test_masks_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"masks of \(700, 800\) and an image of \(40, 60\)"):
        draw_masks(image(60, 40), detections())
    with pytest.raises(ValueError, match=r"masks of \(40, 60\) and an image of \(700, 800\)"):
        draw_panoptic(image(), segments())


def test_the_image_passed_in_is_not_drawn_on():
    given = image()
    draw_masks(given, detections())
    assert given.getcolors() == [(800 * 700, GREY)]


def test_a_sheet_has_annotations_beside_what_was_found(tmp_path):
    found = detections()
    objects = {"bbox": [[100, 200, 300, 400]], "category": [1], "segmentation": found["masks"][:1]}
    path = tmp_path / "a" / "sheet.png"
    sheet = save_masks_grid([image()], [found], [{"image_id": 0, "objects": objects}], path, ID2LABEL)
    assert Image.open(path).size == sheet.size
    half = sheet.width // 2
    left, right = (
        {tuple(rgb) for row in part for rgb in row.tolist()} for part in np.split(np.array(sheet), [half], 1)
    )
    assert mixed(class_color(1)) in left & right
    assert mixed(class_color(0)) in right - left


def test_a_sheet_of_segments_has_two_maps_an_image_and_one_legend(tmp_path):
    rgb = image(60, 40)
    alone = save_masks_grid([rgb], [segments()], [segments()], tmp_path / "one.png", ID2LABEL)
    two = save_masks_grid([rgb] * 2, [segments()] * 2, [segments()] * 2, tmp_path / "two.png", ID2LABEL)
    assert alone.width == two.width > 3 * 320
    assert alone.height < two.height < 2 * alone.height
    with pytest.raises(ValueError, match="1 images, 0 results"):
        save_masks_grid([rgb], [], [segments()], tmp_path / "none.png")
