"""One reader of ground truth: every form gives the same objects, and what cannot be right is named."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_detr import DetrImageProcessor
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import detection_features
from hf_detr.data.targets import read_image_id, read_targets
from hf_detr.data.transform import DetectionTransform
from hf_detr.training.rows import count_rows, with_box_policy

BOXES, LABELS, AREAS, CROWDS = [[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]], [2, 0], [600.0, 81.0], [0, 1]


def coco(**more):
    columns = {"bbox": BOXES, "category_id": LABELS, "area": AREAS, "iscrowd": CROWDS, **more}
    return {"annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def columns(**more):
    return {"objects": {"bbox": BOXES, "category": LABELS, "area": AREAS, "iscrowd": CROWDS, **more}}


def labels(kind=torch.tensor):
    boxes = np.array(BOXES)
    cxcywh = np.concatenate((boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]), axis=1) / [50, 80, 50, 80]
    return {
        "class_labels": kind(LABELS),
        "boxes": kind(cxcywh.tolist()),
        "area": kind([area * 4 for area in AREAS]),
        "iscrowd": kind(CROWDS),
        "orig_size": kind([80, 50]),
        "size": kind([160, 100]),
    }


@pytest.mark.parametrize(
    "target",
    [
        coco(),
        columns(),
        {"objects": coco()["annotations"]},
        {"objects": [dict(zip(("bbox", "category", "area", "iscrowd"), o.values(), strict=True))
                     for o in coco()["annotations"]]},
        columns(bbox=np.array(BOXES, dtype=np.float32), category=np.array(LABELS, dtype=np.uint8)),
        columns(bbox=torch.tensor(BOXES), category=torch.tensor(LABELS), iscrowd=torch.tensor(CROWDS)),
        columns(bbox=torch.tensor(BOXES).bfloat16(), area=[None, 81], iscrowd=[False, True]) | {"skip_area": True},
        columns(bbox=[torch.tensor(box) for box in BOXES], category=[np.int64(2), 0.0], iscrowd=[None, 1]),
        labels(),
        labels(np.array),
        labels(list),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_objects(target):
    got = read_targets(target, "image 7")
    np.testing.assert_allclose(got.boxes_xywh_px, BOXES, atol=1e-5)
    assert got.labels.tolist() == LABELS
    assert got.areas_px.tolist() == ([1200.0, 81.0] if "skip_area" in target else AREAS)
    assert got.crowds.tolist() == [False, True]
    assert len(got) == 2
    assert read_targets({"annotations": got.as_coco()}, "again").boxes_xywh_px.tolist() == got.boxes_xywh_px.tolist()


@pytest.mark.parametrize("target", [{"objects": []}, {"annotations": []}, {"objects": {"bbox": [], "category": []}}])
def test_no_objects_are_empty_arrays(target):
    got = read_targets(target, "image 7")
    assert got.boxes_xywh_px.shape == (0, 4)
    assert got.labels.dtype == np.int64
    assert len(got.select([])) == len(got) == 0


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (columns(bbox=BOXES[:1]), ValueError, r"differ in length, \{'bbox': 1, 'category': 2"),
        ({"objects": {"bbox": BOXES}}, ValueError, "the objects lack category; got bbox"),
        ({"objects": {"bbox": 3, "category": [1]}}, TypeError, "bbox is 3; expected a list"),
        ({"objects": "abc"}, TypeError, "the objects are str"),
        ({"objects": [{"bbox": [1, 2, 3, 4]}]}, ValueError, "object 0 needs 'bbox' and 'category_id'; got bbox"),
        ({"objects": [3]}, TypeError, "object 0 is int"),
        (columns(bbox=[[1, 2, 3, 4], [1, 2, 3]]), ValueError, r"object 1: bbox \[1, 2, 3\]; expected four numbers"),
        (columns(bbox=[[1, 2, 3, 4], [1, 2, 3, None]]), ValueError, "object 1: bbox .*None.*four numbers"),
        (columns(bbox=[[1, 2, 3, 4], [1, 2, 3, 2**70]]), ValueError, "object 1: bbox"),
        (columns(bbox=[["1", "2", "3", "4"], BOXES[1]]), ValueError, "object 0: bbox"),
        (columns(category=[0, "cat"]), TypeError, "object 1: category must be one integer, got 'cat'; .*label2id"),
        (columns(category=[0, 1.5]), TypeError, "object 1: category must be one integer, got 1.5"),
        (columns(category=[True, False]), TypeError, "object 0: category"),
        (columns(category=[0, None]), TypeError, "object 1: category"),
        (columns(category=[0, -1]), ValueError, "object 1: category -1 is negative"),
        (columns(category=[0, 2**64]), ValueError, "object 1: category 184.* 64 bits"),
        (columns(area=[1, "x"]), ValueError, "object 1: area 'x'; expected squared pixels"),
        (columns(area=[1.0, float("nan")]), ValueError, "object 1: area nan"),
        (columns(area=[1, -2]), ValueError, "object 1: area -2"),
        (columns(area=[None, float("inf")]), ValueError, "object 1: area inf"),
        (columns(iscrowd=[0, 2]), ValueError, "object 1: iscrowd 2; expected 0 or 1"),
        (columns(iscrowd=[0, "0"]), ValueError, "object 1: iscrowd '0'"),
        ({"boxes": []}, ValueError, "a target needs 'class_labels' and 'boxes'.*; got boxes"),
        ({k: v for k, v in labels().items() if k != "orig_size"}, ValueError, "the labels lack orig_size"),
        ({k: v for k, v in labels().items() if k != "size"}, ValueError, "'size' .* is not there"),
        (labels() | {"orig_size": torch.tensor([0, 50])}, ValueError, r"'orig_size' must be a positive"),
        (labels() | {"class_labels": torch.tensor([1])}, ValueError, "differ in length"),
        ([1], TypeError, "expected a dict"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_named(target, error, message):
    with pytest.raises(error, match=f"image 7.*{message}"):
        read_targets(target, "image 7")


@pytest.mark.parametrize("image_id", [7, np.int64(7), np.array([7]), torch.tensor(7), torch.tensor([7]), [7], 7.0])
def test_an_image_id_is_an_integer_of_any_kind(image_id):
    assert read_image_id({"image_id": image_id}, "x") == 7


@pytest.mark.parametrize("image_id", ["a.jpg", 1.5, [1, 2], None, True, float("nan"), 2**70])
def test_what_is_no_image_id_is_named(image_id):
    with pytest.raises((TypeError, ValueError), match=r"annotations\[3\]: 'image_id' "):
        read_image_id({"image_id": image_id}, r"annotations[3]")


# --- the policy for bad boxes means the same everywhere ---------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
# box of a 64 x 48 image, what is wrong with it, what clipping leaves of it
CASES = [
    ([4, 6, 20, 30], None, None),
    ([0, 0, 64, 48], None, None),
    ([-0.9, 6, 20, 30], None, [0, 6, 19.1, 30]),
    ([50, 6, 15, 42.75], None, [50, 6, 14, 42]),
    ([-1.5, 6, 20, 30], "partly outside the image", [0, 6, 18.5, 30]),
    ([50, 6, 16, 30], "partly outside the image", [50, 6, 14, 30]),
    ([-9, -9, 100, 100], "partly outside the image", [0, 0, 64, 48]),
    ([64, 6, 20, 30], "outside the image", None),
    ([63.999, 48, 20, 30], "outside the image", None),
    ([-30, 6, 20, 30], "outside the image", None),
    ([4, 6, 0, 30], "no area", None),
    ([4, 6, 20, 0], "no area", None),
    ([4, 6, -2, 30], "negative size", None),
    ([NAN, 6, 20, 30], "not finite", None),
    ([4, 6, NAN, 30], "not finite", None),
    ([4, 6, INF, 30], "not finite", [4, 6, 60, 30]),
    ([-INF, 6, INF, 30], "not finite", None),
]
GOOD = [10.0, 10.0, 5.0, 5.0]


def row_of(box):
    objects = {"id": [1, 2], "bbox": [box, GOOD], "category": [1, 0], "iscrowd": [0, 0]}
    objects["area"] = [box[2] * box[3], 25.0]
    return {"image": Image.new("RGB", (64, 48)), "image_id": 9, "width": 64, "height": 48, "objects": objects}


def rows_of(box):
    features = detection_features(["a", "b"])
    return Dataset.from_dict({name: [value] for name, value in row_of(box).items()}, features=features)


def at_loading(box, on_bad_box):
    return load_detection_dataset(rows_of(box), on_bad_box=on_bad_box)["train"][0]["objects"]["bbox"]


def in_the_processor(box, on_bad_box):
    row = row_of(box)
    row["objects"].pop("area")
    processor = DetrImageProcessor(do_resize=False, do_convert_annotations=False, on_bad_box=on_bad_box)
    corners = processor(row["image"], row, return_tensors="pt")["labels"][0]["boxes"]
    return torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1).tolist()


def in_the_trainer(box, on_bad_box):
    processor = DetrImageProcessor(do_resize=False, do_convert_annotations=False)
    rows = rows_of(box).with_transform(DetectionTransform(processor))
    if count_rows(rows, "train_dataset", on_bad_box).bad_boxes:
        rows = with_box_policy(rows, on_bad_box)
    corners = rows[0]["labels"]["boxes"]
    return torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1).tolist()


@pytest.mark.filterwarnings("ignore:.*dropped:UserWarning", "ignore:.*clipped:UserWarning")
@pytest.mark.parametrize("place", [at_loading, in_the_processor, in_the_trainer])
@pytest.mark.parametrize("on_bad_box", ["error", "drop", "clip"])
def test_a_bad_box_is_the_same_at_loading_in_the_processor_and_in_the_trainer(place, on_bad_box):
    for box, problem, inside in CASES:
        if problem is not None and on_bad_box == "error":
            with pytest.raises(ValueError, match=rf"image_id 9.*object 0: box .*: {problem}; correct it") as caught:
                place(box, on_bad_box)
            assert "of a 64 x 48 image" in str(caught.value)
            continue
        expected = [inside or box, GOOD]
        if problem is not None and (on_bad_box == "drop" or inside is None):
            expected = [GOOD]
        np.testing.assert_allclose(place(box, on_bad_box), expected, atol=1e-4, err_msg=str(box))


@pytest.mark.parametrize("place", [at_loading, in_the_processor, in_the_trainer])
@pytest.mark.parametrize("on_bad_box", ["drop", "clip"])
def test_what_the_policy_changes_is_counted_and_named(place, on_bad_box):
    word = {"drop": r"1 dropped \(partly outside the image: 1\)", "clip": "1 clipped to the image"}[on_bad_box]
    with pytest.warns(UserWarning, match=rf"of 2 boxes {word}.*image_id 9.*object 0.*partly outside|Of 2 boxes {word}"):
        place([50, 6, 16, 30], on_bad_box)


@pytest.mark.filterwarnings("ignore:.*dropped:UserWarning", "ignore:.*clipped:UserWarning")
def test_a_bad_box_of_a_coco_file_without_areas_is_the_policys_to_judge(tmp_path):
    """The area that is made of a bad box is no fault of its own, and follows the box that is clipped."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    for box, problem, inside in CASES:
        annotations = [{"id": i, "image_id": 9, "category_id": 1, "bbox": b} for i, b in enumerate((box, GOOD), 1)]
        content = {"images": [{"id": 9, "file_name": "a.png", "width": 64, "height": 48}], "annotations": annotations}
        (tmp_path / "train.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "a"}]}))
        options = {"format": "coco", "image_dir": tmp_path, "on_bad_box": "clip"}
        objects = load_detection_dataset(tmp_path / "train.json", **options)["train"][0]["objects"]
        expected = [GOOD] if problem and inside is None else [inside or box, GOOD]
        np.testing.assert_allclose(objects["bbox"], expected, atol=1e-4)
        np.testing.assert_allclose(objects["area"], [w * h for _, _, w, h in expected], rtol=1e-4)
        if problem:
            with pytest.raises(ValueError, match=rf": box .*: {problem}; correct it"):
                load_detection_dataset(tmp_path / "train.json", **(options | {"on_bad_box": "error"}))


def test_the_area_of_a_mask_stays_and_that_of_a_box_follows_it():
    for area, expected in ((480.0, 420.0), (300.0, 300.0), (None, 420.0)):
        objects = {"bbox": [[50, 6, 16, 30]], "category": [0], "area": [area]}
        processor = DetrImageProcessor(do_resize=False, on_bad_box="clip")
        with pytest.warns(UserWarning, match="1 clipped"):
            label = processor(Image.new("RGB", (64, 48)), {"image_id": 1, "objects": objects})["labels"][0]
        assert label["area"].tolist() == [expected]
