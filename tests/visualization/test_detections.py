"""Pictures with boxes: lines lie where the boxes are, in the colour of the class, whatever image and form come in."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr.visualization import class_color, draw_detections, save_detections_grid

ID2LABEL = {0: "cat", 1: "dog"}


def detections(**changes):
    boxes = [[100.0, 200.0, 400.0, 600.0], [500.0, 50.0, 700.0, 300.0]]
    return {"scores": [0.9, 0.2], "labels": [0, 1], "boxes": boxes} | changes


def grey(width=800, height=700):
    return Image.new("RGB", (width, height), (128, 128, 128))


def has_color(picture, color, box=None) -> bool:
    pixels = np.asarray(picture.crop(box) if box else picture)
    return bool((pixels == np.array(color)).all(axis=-1).any())


def test_lines_lie_on_the_box_in_the_colour_of_the_class():
    picture = draw_detections(grey(), detections(), ID2LABEL)
    assert picture.size == (800, 700)
    for x, y in ((100, 400), (400, 400), (250, 200), (250, 600)):
        assert picture.getpixel((x, y)) == class_color(0)
    assert picture.getpixel((700, 200)) == class_color(1)
    assert picture.getpixel((250, 400)) == (128, 128, 128)


def test_detections_below_the_threshold_are_not_drawn():
    picture = draw_detections(grey(), detections(), ID2LABEL, threshold=0.5)
    assert has_color(picture, class_color(0))
    assert not has_color(picture, class_color(1))


def test_the_image_passed_in_is_not_drawn_on():
    image = grey()
    draw_detections(image, detections())
    assert image.getcolors() == [(800 * 700, (128, 128, 128))]


def test_a_class_has_one_colour_and_neighbours_differ():
    colors = [class_color(label) for label in range(91)]
    assert colors == [class_color(label) for label in range(91)]
    assert len(set(colors)) == 91
    near = [np.abs(np.subtract(a, b)).sum() for a, b in pairwise(colors)]
    assert min(near) > 150


def test_names_and_scores_are_written():
    named = draw_detections(grey(), detections(), ID2LABEL)
    other_name = draw_detections(grey(), detections(), {0: "cow", 1: "dog"})
    other_score = draw_detections(grey(), detections(scores=[0.7, 0.2]), ID2LABEL)
    nameless = draw_detections(grey(), detections())
    pictures = [named, other_name, other_score, nameless]
    above_first_box = {picture.crop((90, 160, 420, 200)).tobytes() for picture in pictures}
    assert len(above_first_box) == 4


def test_a_small_image_is_enlarged_and_its_boxes_with_it():
    picture = draw_detections(grey(96, 64), detections(scores=[0.9], labels=[0], boxes=[[10.0, 20.0, 50.0, 60.0]]))
    scale = picture.width // 96
    assert picture.size == (96 * scale, 64 * scale)
    assert picture.width >= 640
    assert picture.getpixel((10 * scale, 40 * scale)) == class_color(0)
    assert picture.getpixel((30 * scale, 40 * scale)) == (128, 128, 128)


def test_lines_grow_with_the_image():
    def line_width(side):
        box = [[side * 0.25, side * 0.25, side * 0.75, side * 0.75]]
        picture = draw_detections(grey(side, side), {"scores": [0.5], "labels": [0], "boxes": box})
        row = np.asarray(picture)[side // 2]
        return (row == np.array(class_color(0))).all(axis=-1).sum() / 2

    assert line_width(640) == 2
    assert line_width(3200) == 10


def test_ground_truth_is_dashed_over_the_detections():
    row = {"image_id": 1, "objects": {"bbox": [[100, 200, 300, 400]], "category": [0]}}
    picture = draw_detections(grey(), None, ID2LABEL, targets=row)
    left_line = np.asarray(picture)[220:580, 100]
    white, colored = ((left_line == np.array(color)).all(axis=-1).mean() for color in ((255, 255, 255), class_color(0)))
    assert 0.3 < white < 0.7
    assert white + colored == pytest.approx(1.0)


def test_ground_truth_comes_in_every_form_the_evaluator_takes():
    row = {"image_id": 1, "objects": {"bbox": [[100, 200, 300, 400]], "category": [0]}}
    coco = {"image_id": 1, "annotations": [{"bbox": [100, 200, 300, 400], "category_id": 0}]}
    labels = {
        "class_labels": torch.tensor([0]),
        "boxes": torch.tensor([[250 / 800, 400 / 700, 300 / 800, 400 / 700]]),
        "orig_size": torch.tensor([700, 800]),
        "size": torch.tensor([70, 80]),
    }
    expected = draw_detections(grey(), None, ID2LABEL, targets=row)
    assert draw_detections(grey(), None, ID2LABEL, targets=coco) == expected
    assert draw_detections(grey(), None, ID2LABEL, targets=labels) == expected


def test_side_by_side_has_the_truth_on_the_left():
    row = {"image_id": 1, "objects": {"bbox": [[100, 200, 300, 400]], "category": [1]}}
    picture = draw_detections(grey(), detections(scores=[0.9, 0.1]), ID2LABEL, 0.5, row, side_by_side=True)
    left, right = (0, 0, picture.width // 2, picture.height), (picture.width // 2, 0, picture.width, picture.height)
    assert has_color(picture, class_color(1), left)
    assert not has_color(picture, class_color(0), left)
    assert has_color(picture, class_color(0), right)
    assert not has_color(picture, class_color(1), right)
    with pytest.raises(ValueError, match="side_by_side needs targets"):
        draw_detections(grey(), detections(), side_by_side=True)


@pytest.mark.parametrize(
    "image",
    [
        np.full((700, 800, 3), 128, np.uint8),
        np.full((700, 800), 128, np.uint8),
        np.full((700, 800, 4), 128, np.uint8),
        torch.full((3, 700, 800), 128, dtype=torch.uint8),
        torch.full((1, 700, 800), 128 / 255),
        Image.new("L", (800, 700), 128),
        Image.new("RGBA", (800, 700), (128, 128, 128, 255)),
        Image.new("P", (800, 700)),
    ],
    ids=["array", "grey array", "rgba array", "tensor", "float tensor", "L", "RGBA", "P"],
)
def test_every_usual_image_is_taken(image):
    picture = draw_detections(image, detections())
    assert (picture.mode, picture.size) == ("RGB", (800, 700))
    assert picture.getpixel((100, 400)) == class_color(0)
    expected = (0, 0, 0) if getattr(image, "mode", "") == "P" else (128, 128, 128)
    assert picture.getpixel((250, 400)) == expected


def test_sixteen_bit_grey_values_are_spread_not_cut():
    ramp = np.linspace(20000, 60000, 700 * 800).reshape(700, 800).astype(np.uint16)
    picture = np.asarray(draw_detections(Image.fromarray(ramp), None))
    assert picture.min() == 0
    assert picture.max() == 255
    assert 120 < picture.mean() < 135


def test_a_normalised_tensor_is_an_error():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        draw_detections(torch.randn(3, 64, 64), None)
    with pytest.raises(ValueError, match="a tensor image must be"):
        draw_detections(torch.zeros(64, 64, 3), None)
    with pytest.raises(ValueError, match="an array image must be uint8"):
        draw_detections(np.zeros((64, 64, 3)), None)
    with pytest.raises(TypeError, match="got str"):
        draw_detections("picture.jpg", None)


def test_boxes_and_names_at_and_beyond_the_border_stay_in_sight():
    boxes = [[-50.0, -50.0, 900.0, 900.0], [790.0, 690.0, 800.0, 700.0]]
    picture = draw_detections(grey(), detections(boxes=boxes), {0: "a very long name of a class indeed", 1: "dog"})
    assert picture.getpixel((0, 350)) == picture.getpixel((799, 350)) == class_color(0)
    assert has_color(picture, class_color(1), (700, 600, 800, 700))


def test_nothing_detected_leaves_the_image():
    empty = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    assert draw_detections(grey(), empty) == grey()
    assert draw_detections(grey(), None) == grey()


def test_a_grid_holds_every_image(tmp_path):
    images = [grey(800, 700), grey(300, 900), grey(64, 64)]
    found = [detections(), None, detections(scores=[0.5], labels=[1], boxes=[[5.0, 5.0, 60.0, 60.0]])]
    path = tmp_path / "new/grid.png"
    sheet = save_detections_grid(images, found, path, ID2LABEL, captions=["one", "two", "three"], cell_px=200)
    assert Image.open(path).size == sheet.size
    assert 400 < sheet.width < 440  # two columns
    half = (sheet.width // 2, sheet.height // 2)
    assert has_color(sheet, class_color(0), (0, 0, *half))
    assert has_color(sheet, (128, 128, 128), (half[0], 0, sheet.width, half[1]))
    assert has_color(sheet, class_color(1), (0, half[1], half[0], sheet.height))


def test_a_grid_needs_as_many_results_as_images(tmp_path):
    with pytest.raises(ValueError, match="2 images and 1 detections"):
        save_detections_grid([grey(), grey()], [None], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="no image"):
        save_detections_grid([], [], tmp_path / "grid.png")
