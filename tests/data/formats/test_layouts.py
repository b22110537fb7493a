"""Layouts of exports that differ in small ways from those in test_exports."""

import shutil

import pytest

from hf_detr.data.checks import check_dataset
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import class_names

from ..tiny_data import SCENES, write_pictures
from .test_exports import SCENE_BOXES, boxes, write_coco, write_labels


def cvat_subsets(root):
    for subset, colour in (("Train", 0), ("Validation", 100)):
        write_pictures(root / "images" / subset, colour)
        write_labels(root / "labels" / subset)
        (root / f"{subset}.txt").write_text("".join(f"data/images/{subset}/{stem}.png\n" for stem in SCENES))
    (root / "data.yaml").write_text("Train: Train.txt\nValidation: Validation.txt\nnames: [cat, dog]\npath: .\n")


def kaggle_coco(root):
    for split, colour in (("train", 0), ("val", 100)):
        write_pictures(root / f"{split}_images", colour)
        write_coco(root / f"{split}_annotations.json")


@pytest.mark.parametrize("write", [cvat_subsets, kaggle_coco])
def test_splits_are_known_by_any_usual_spelling(tmp_path, write):
    write(tmp_path)
    assert check_dataset(tmp_path).errors == []
    data = load_detection_dataset(tmp_path)
    assert list(data) == ["train", "validation"]
    assert [boxes(split) for split in data.values()] == [SCENE_BOXES, SCENE_BOXES]


def test_images_labels_and_classes_side_by_side_are_yolo(tmp_path):
    write_pictures(tmp_path)
    write_labels(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = load_detection_dataset(tmp_path)
    assert class_names(data) == ["cat", "dog"]
    assert boxes(data["train"]) == SCENE_BOXES
    assert check_dataset(tmp_path).problems == []


@pytest.mark.parametrize("empty", [True, False])
def test_a_split_without_images_beside_train_is_left_out_with_a_warning(yolo_dir, empty):
    shutil.rmtree(yolo_dir / "images" / "val")
    if empty:
        (yolo_dir / "images" / "val").mkdir()
    report = check_dataset(yolo_dir)
    assert not report.errors
    assert "validation: no images, so this split is left out." in report.text()
    with pytest.warns(UserWarning, match="validation: no images, so this split is left out"):
        assert list(load_detection_dataset(yolo_dir)) == ["train"]


def test_a_split_without_images_is_an_error_where_it_is_what_there_is_to_train_on(yolo_dir):
    (yolo_dir / "data.yaml").write_text("val: images/nowhere\nnames: [cat, dog]\n")
    assert any("no such folder" in problem.message for problem in check_dataset(yolo_dir).errors)
    with pytest.raises(ValueError, match="validation: no such folder"):
        load_detection_dataset(yolo_dir)
