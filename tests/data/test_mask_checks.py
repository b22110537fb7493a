import json

import numpy as np
import pytest
from PIL import Image

from hf_detr import shape_scenes
from hf_detr.data.checks import check_dataset
from hf_detr.data.contact_sheet import draw_contact_sheet
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.masks import encode_mask

from .mask_folders import write_coco_folder, write_panoptic_folder


@pytest.fixture
def coco(tmp_path):
    return write_coco_folder(tmp_path / "coco", {"train": shape_scenes(3, 40, task="instance")})


@pytest.fixture
def panoptic(tmp_path):
    return write_panoptic_folder(tmp_path / "panoptic", {"train": shape_scenes(3, 40, task="panoptic")})


def change(path, do):
    content = json.loads(path.read_text())
    do(content)
    path.write_text(json.dumps(content))


def of_masks(report) -> list:
    return [problem for problem in report.problems if problem.kind.startswith("mask: ")]


def corner(size=2) -> dict:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[:size, :size] = 1
    entry = encode_mask(mask)
    return {"size": entry["size"], "counts": entry["counts"]}


BAD_SEGMENTATIONS = [
    ([[1, 1, 5, 5]], "mask: polygon of fewer than 3 points"),
    ([[1, 1, 5, 5, "x", 9]], "mask: unreadable"),
    ({"size": [40, 40], "counts": [40]}, "mask: unreadable"),
    ({"size": [40, 40], "counts": "0PP"}, "mask: unreadable"),
    ({"size": [30, 40], "counts": [1200]}, "mask: size differs"),
    ({"size": [40, 40], "counts": [1600]}, "mask: empty"),
    ([[5, 5, 60, 5, 60, 9]], "mask: outside its image"),
    (corner(), "mask: outside its box"),
    (None, "mask: none"),
]


@pytest.mark.parametrize(("segmentation", "kind"), BAD_SEGMENTATIONS)
def test_every_kind_of_bad_mask_is_found_with_its_annotation(coco, segmentation, kind):
    path = coco / "annotations" / "instances_train.json"

    def do(content):
        content["annotations"][1].update(segmentation=segmentation, bbox=[20, 20, 10, 10])

    change(path, do)
    report = check_dataset(coco, masks=True)
    assert kind in {problem.kind for problem in report.errors}
    assert all(f"{path}: annotation 2 (annotations[1]) of 000000.png" in problem.where for problem in report.errors)
    as_boxes = check_dataset(coco)
    assert as_boxes.errors == []
    assert kind in {problem.kind for problem in as_boxes.warnings}
    assert of_masks(check_dataset(coco, masks=False)) == []


def test_every_kind_of_bad_png_is_found_with_its_file(panoptic):
    folder = panoptic / "annotations" / "panoptic_train"
    (folder / "000000.png").unlink()
    Image.new("RGB", (30, 40)).save(folder / "000001.png")
    change(
        panoptic / "annotations" / "panoptic_train.json",
        lambda content: content["annotations"][2]["segments_info"][0].update(id=77),
    )
    report = check_dataset(panoptic, masks=True)
    first = {problem.kind: problem for problem in reversed(report.errors)}
    assert set(first) == {"mask: file missing", "mask: size differs", "mask: id not in the PNG"}
    assert "annotations[0].segments_info[0]) of 000000.png" in first["mask: file missing"].where
    assert f"{folder / '000000.png'}: no such PNG" in first["mask: file missing"].message
    assert "has size [40, 30], its image [40, 40]" in first["mask: size differs"].message
    assert "no pixel has the id 77" in first["mask: id not in the PNG"].message
    change(
        panoptic / "annotations" / "panoptic_train.json",
        lambda content: content["annotations"][2]["segments_info"].append(
            content["annotations"][2]["segments_info"][1]
        ),
    )
    assert "mask: id given twice" in {problem.kind for problem in check_dataset(panoptic, masks=True).errors}
    (folder / "000002.png").write_bytes(b"hello")
    assert "mask: file corrupt" in {problem.kind for problem in check_dataset(panoptic, masks=True).errors}
    undecoded = check_dataset(panoptic, masks=True, decode_images=False)
    assert {problem.kind for problem in undecoded.errors} == {"mask: id given twice"}


def test_loading_leaves_bad_masks_out_and_counts_them(coco):
    change(
        coco / "annotations" / "instances_train.json",
        lambda content: content["annotations"][0].update(segmentation=[[1, 2]]),
    )
    with pytest.warns(UserWarning, match=r"'train': 1 masks cannot be used \(mask: polygon of fewer.*annotation 1 "):
        objects = load_detection_dataset(coco)["train"][0]["objects"]
    assert objects["segmentation"][0] is None
    assert all(objects["segmentation"][1:])


def test_masks_are_wanted_of_all_objects_or_of_none(coco):
    change(
        coco / "annotations" / "instances_train.json",
        lambda content: [one.pop("segmentation") for one in content["annotations"]],
    )
    assert of_masks(check_dataset(coco)) == []
    (problem,) = check_dataset(coco, masks=True).errors
    assert problem.kind == "mask: none"


def test_a_contact_sheet_shows_masks_and_leaves_out_bad_ones(coco, tmp_path):
    data = load_detection_dataset(coco)["train"]
    with_masks, without = (
        np.asarray(Image.open(draw_contact_sheet(one, tmp_path / f"{name}.png", n=3)))
        for name, one in (("masks", data), ("boxes", load_detection_dataset(coco, masks=False)["train"]))
    )
    assert (with_masks != without).any(axis=-1).mean() > 0.01
    bad = data.map(lambda row: {"objects": {**row["objects"], "segmentation": [None] * len(row["objects"]["id"])}})
    drawn = np.asarray(Image.open(draw_contact_sheet(bad, tmp_path / "bad.png", n=3)))
    assert np.array_equal(drawn, without)
