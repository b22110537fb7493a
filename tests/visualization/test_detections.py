"""Images with boxes: lines lie where the boxes are, in the colour of the class, whatever image and form come in."""

import sys
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


def has_color(drawing, color, box=None) -> bool:
    pixels = np.asarray(drawing.crop(box) if box else drawing)
    return bool((pixels == np.array(color)).all(axis=-1).any())


def test_lines_lie_on_the_box_in_the_colour_of_the_class():
    drawing = draw_detections(grey(), detections(), ID2LABEL)
    assert drawing.size == (800, 700)
    for x, y in ((100, 400), (400, 400), (250, 200), (250, 600)):
        assert drawing.getpixel((x, y)) == class_color(0)
    assert drawing.getpixel((700, 200)) == class_color(1)
    assert drawing.getpixel((250, 400)) == (128, 128, 128)


def test_detections_below_the_threshold_are_not_drawn():
    drawing = draw_detections(grey(), detections(), ID2LABEL, threshold=0.5)
    assert has_color(drawing, class_color(0))
    assert not has_color(drawing, class_color(1))


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
    drawings = [named, other_name, other_score, nameless]
    above_first_box = {drawing.crop((90, 160, 420, 200)).tobytes() for drawing in drawings}
    assert len(above_first_box) == 4


def test_a_small_image_is_enlarged_and_its_boxes_with_it():
    drawing = draw_detections(grey(96, 64), detections(scores=[0.9], labels=[0], boxes=[[10.0, 20.0, 50.0, 60.0]]))
    scale = drawing.width // 96
    assert drawing.size == (96 * scale, 64 * scale)
    assert drawing.width >= 640
    assert drawing.getpixel((10 * scale, 40 * scale)) == class_color(0)
    assert drawing.getpixel((30 * scale, 40 * scale)) == (128, 128, 128)


def test_lines_grow_with_the_image():
    def line_width(side):
        box = [[side * 0.25, side * 0.25, side * 0.75, side * 0.75]]
        drawing = draw_detections(grey(side, side), {"scores": [0.5], "labels": [0], "boxes": box})
        row = np.asarray(drawing)[side // 2]
        return (row == np.array(class_color(0))).all(axis=-1).sum() / 2

    assert line_width(640) == 2
    assert line_width(3200) == 10


def test_ground_truth_is_dashed_over_the_detections():
    row = {"image_id": 1, "objects": {"bbox": [[100, 200, 300, 400]], "category": [0]}}
    drawing = draw_detections(grey(), None, ID2LABEL, targets=row)
    left_line = np.asarray(drawing)[220:580, 100]
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
    drawing = draw_detections(grey(), detections(scores=[0.9, 0.1]), ID2LABEL, 0.5, row, side_by_side=True)
    left, right = (0, 0, drawing.width // 2, drawing.height), (drawing.width // 2, 0, drawing.width, drawing.height)
    assert has_color(drawing, class_color(1), left)
    assert not has_color(drawing, class_color(0), left)
    assert has_color(drawing, class_color(0), right)
    assert not has_color(drawing, class_color(1), right)
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
    drawing = draw_detections(image, detections())
    assert (drawing.mode, drawing.size) == ("RGB", (800, 700))
    assert drawing.getpixel((100, 400)) == class_color(0)
    expected = (0, 0, 0) if getattr(image, "mode", "") == "P" else (128, 128, 128)
    assert drawing.getpixel((250, 400)) == expected


def test_sixteen_bit_grey_values_are_scaled_as_for_the_model_not_cut():
    ramp = np.linspace(20000, 60000, 700 * 800).reshape(700, 800).astype(np.uint16)
    drawing = np.asarray(draw_detections(Image.fromarray(ramp), None))
    assert (drawing.min(), drawing.max()) == (round(20000 / 257), round(60000 / 257))


def test_a_normalised_tensor_is_an_error():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        draw_detections(torch.randn(3, 64, 64), None)
    with pytest.raises(ValueError, match="a tensor image must be"):
        draw_detections(torch.zeros(64, 64, 3), None)
    with pytest.raises(ValueError, match="an array image must be uint8"):
        draw_detections(np.zeros((64, 64, 3)), None)
    with pytest.raises(TypeError, match="got str"):
        draw_detections("image.jpg", None)


def test_boxes_and_names_at_and_beyond_the_border_stay_in_sight():
    boxes = [[-50.0, -50.0, 900.0, 900.0], [790.0, 690.0, 800.0, 700.0]]
    drawing = draw_detections(grey(), detections(boxes=boxes), {0: "a very long name of a class indeed", 1: "dog"})
    assert drawing.getpixel((0, 350)) == drawing.getpixel((799, 350)) == class_color(0)
    assert has_color(drawing, class_color(1), (700, 600, 800, 700))


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


@pytest.mark.parametrize(
    "image",
    [Image.new("RGB", (0, 0)), Image.new("L", (5, 0)), np.zeros((0, 5, 3), np.uint8), torch.zeros(3, 5, 0)],
    ids=["PIL", "no rows", "array", "tensor"],
)
def test_an_image_without_pixels_is_refused_in_words(image):
    with pytest.raises(ValueError, match=r"an image of \d x \d pixels cannot be drawn on"):
        draw_detections(image, detections())


def test_an_image_keeps_its_size_where_it_is_asked_to():
    found = detections(scores=[0.9], labels=[0], boxes=[[10.0, 20.0, 50.0, 60.0]])
    drawing = draw_detections(grey(96, 64), found, ID2LABEL, enlarge=False)
    assert drawing.size == (96, 64)
    assert drawing.getpixel((10, 40)) == class_color(0)
    assert drawing.getpixel((30, 45)) == (128, 128, 128)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 500), (12000, 40)])
def test_images_of_every_shape_are_drawn_on(size):
    boxes = [[0.0, 0.0, size[0], size[1]], [0.0, 0.0, 1.0, 1.0]]
    for enlarge in (False, True):
        draw_detections(grey(*size), detections(boxes=boxes), ID2LABEL, enlarge=enlarge)


def calls_of(work) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", ["detections", "targets", "both"])
def test_the_work_of_drawing_is_proportional_to_the_number_of_boxes(kind):
    def work(number):
        corners = np.random.default_rng(0).integers(0, 600, (number, 2)).astype(float)
        found = {"scores": [0.5] * number, "labels": [0] * number, "boxes": np.hstack((corners, corners + 50))}
        bbox = np.hstack((corners, np.full((number, 2), 50.0))).tolist()
        row = {"image_id": 1, "objects": {"bbox": bbox, "category": [0] * number}}
        truth = None if kind == "detections" else row
        return lambda: draw_detections(grey(), None if kind == "targets" else found, ID2LABEL, targets=truth)

    work(10)()  # what is done once
    few, many = calls_of(work(100)), calls_of(work(400))
    assert many < 4.4 * few


def test_the_tag_of_a_box_stays_at_it_however_many_there_are():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 600, (60, 2))
    boxes = np.hstack((corners, corners + rng.uniform(5, 150, (60, 2))))
    names = {label: f"class {label}" for label in range(60)}
    drawing = np.asarray(draw_detections(grey(), {"scores": [0.5] * 60, "labels": range(60), "boxes": boxes}, names))
    for label, (left, top, right, bottom) in enumerate(boxes):
        y, x = np.nonzero((drawing == class_color(label)).all(-1))  # what others do not cover
        if len(x):
            assert x.min() > min(left, 799 - 130) - 130
            assert x.max() < max(right, 130) + 130
            assert y.min() > top - 25
            assert y.max() < bottom + 25


def truth_row(*bbox, category=0):
    return {"image_id": 1, "objects": {"bbox": [list(bbox)], "category": [category]}}


def test_a_comparison_tells_detection_from_annotation_by_stroke_and_colour():
    found = detections(scores=[0.9], labels=[0], boxes=[[100.0, 200.0, 400.0, 600.0]])
    drawing = np.asarray(draw_detections(grey(), found, ID2LABEL, targets=truth_row(500, 100, 200, 300)))
    solid, dashed = drawing[300:500, 100], drawing[150:380, 500]
    assert len(np.unique(solid, axis=0)) == 1
    colors = np.unique(dashed, axis=0)
    assert len(colors) == 2  # white and the annotations' own
    assert not {tuple(color) for color in colors} & {tuple(solid[0])}


def lightness(color) -> float:
    return float(np.dot((0.2126, 0.7152, 0.0722), (np.array(color) / 255) ** 2.2))


def test_the_colours_of_a_comparison_differ_in_lightness_too():
    found = detections(scores=[0.9], labels=[0], boxes=[[100.0, 200.0, 400.0, 600.0]])
    drawing = np.asarray(draw_detections(grey(), found, ID2LABEL, targets=truth_row(500, 100, 200, 300)))
    solid, dashes = drawing[300, 100], drawing[150:380, 500]
    darkest = min(lightness(color) for color in dashes)
    assert (lightness(solid) + 0.05) / (darkest + 0.05) > 2


def test_where_both_lie_on_each_other_both_are_seen():
    found = detections(scores=[0.9], labels=[0], boxes=[[100.0, 200.0, 400.0, 600.0]])
    both = np.asarray(draw_detections(grey(), found, ID2LABEL, targets=truth_row(100, 200, 300, 400)))
    columns = both[300:500, 98:104]
    alone = np.asarray(draw_detections(grey(), found, ID2LABEL))[300, 100]
    assert len({tuple(color) for color in columns.reshape(-1, 3)} - {tuple(alone), (128, 128, 128)}) >= 3


def test_an_annotation_is_named_where_nothing_of_its_class_was_found():
    def tagged(category, score=0.9):
        found = detections(scores=[score], labels=[0], boxes=[[100.0, 200.0, 400.0, 600.0]])
        row = truth_row(100, 210, 300, 390, category=category)
        names = ({0: "cat", 1: "dog"}, {0: "cow", 1: "cow"})
        one, other = (draw_detections(grey(), found, {**name, 0: "cat"}, 0.5, row) for name in names)
        return one != other

    assert tagged(category=1)  # "dog" or "cow" is written
    assert not tagged(category=0)


@pytest.mark.parametrize("name", ["two\nlines", "nul\x00", "right\u202eleft", "lone\udcff", "tab\t", "猫"])
def test_names_that_cannot_be_written_are_escaped_not_lost(name):
    def drawn(name):
        return draw_detections(grey(), detections(), {0: name, 1: "dog"}).tobytes()

    assert drawn(name) == drawn(name.encode("unicode_escape").decode())
    assert drawn("Zürich Ωmega") != drawn("Zürich Ωmeg")


def test_a_long_name_on_a_narrow_image_leaves_room_for_the_score():
    box = [[5.0, 20.0, 90.0, 60.0]]
    one, other = (
        draw_detections(
            grey(100, 64), detections(scores=[score], labels=[0], boxes=box), {0: "long " * 5}, enlarge=False
        )
        for score in (0.91, 0.42)
    )
    assert one != other


def test_a_grid_with_targets_has_a_legend_and_names_its_images(tmp_path):
    images, found, truth = [grey()] * 2, [detections(), None], [truth_row(100, 200, 300, 400)] * 2
    arguments = {"images": images, "detections": found, "path": tmp_path / "grid.png", "id2label": ID2LABEL}
    bare = save_detections_grid(**arguments)
    legend = save_detections_grid(**arguments, targets=truth)
    named = save_detections_grid(**arguments, targets=truth, captions=["a.jpg", "line\nbreak.jpg"])
    assert bare.height < legend.height < named.height
    detection, annotation = ((230, 159, 0), (0, 114, 178))
    top = (0, 0, legend.width, legend.height - bare.height)
    assert has_color(legend, detection, top)
    assert has_color(legend, annotation, top)
    # an image in which nothing was found is drawn like the others
    assert has_color(legend, annotation, (legend.width // 2, top[3] + 10, legend.width, legend.height))
    assert not has_color(legend, class_color(0), (0, top[3] + 10, legend.width, legend.height))
