import pytest

from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import class_names, original_category_ids

from ..tiny_data import SCENES


def test_yolo_fractions_become_pixels(yolo_dir):
    for source in (yolo_dir, yolo_dir / "data.yaml"):
        dataset = load_detection_dataset(source)
        assert list(dataset) == ["train", "validation"]
        assert class_names(dataset) == ["cat", "dog"]
        row = dataset["train"][0]
        assert row["objects"]["category"] == [0, 1]
        for box, (_, wanted) in zip(row["objects"]["bbox"], SCENES["a"], strict=True):
            assert box == pytest.approx(wanted, abs=1e-3)
        assert dataset["train"][2]["objects"]["bbox"] == []  # no label file: no object
        assert (row["width"], row["height"]) == (40, 30)


def test_names_as_a_dict_keep_their_numbers(yolo_dir):
    (yolo_dir / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: dog\n  5: bird\n")
    dataset = load_detection_dataset(yolo_dir)
    assert original_category_ids(dataset) == [0, 1, 5]
    assert class_names(dataset) == ["cat", "dog", "bird"]


def test_lists_of_pictures_and_service_paths(yolo_dir):
    (yolo_dir / "some.txt").write_text("images/train/a.png\n./images/val/b.png\n")
    (yolo_dir / "data.yaml").write_text("train: some.txt\nval: ../images/val\nnames: [cat, dog]\nnc: 2\n")
    dataset = load_detection_dataset(yolo_dir)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 2, "validation": 3}
    # one picture, one number, in whichever split
    assert dataset["train"][1]["image_id"] == dataset["validation"][1]["image_id"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.1 0.1 0.2 0.1 0.2", r"a\.txt:2: expected 'class cx cy w h', got 6 fields; the sixth may be a score"),
        ("1 0.1 0.1 0.2 0.1 0.2 0.2 0.3", r"a\.txt:2: expected 'class cx cy w h', got 8 fields; or a polygon"),
        ("1 0.1 0.1", r"a\.txt:2: expected 'class cx cy w h', got 3 fields"),
        ("dog 0.5 0.5 0.1 0.1", r"a\.txt:2: expected five numbers"),
        ("2 0.5 0.5 0.1 0.1", r"a\.txt:2: unknown class 2, the names are \{0: 'cat', 1: 'dog'\}"),
        ("1 20 15 10 10", r"a\.txt:2: .*looks like pixels; divide by width 40 and height 30"),
        ("1 0.5 0.5 0 0.1", r"a\.txt:2: box .*no area"),
        ("1 nan 0.5 0.1 0.1", r"a\.txt:2: box .*not finite"),
        ("1 0.95 0.5 0.4 0.1", r"a\.txt:2: box .*partly outside the image"),
    ],
)
def test_damaged_label_files_are_named_with_their_line(yolo_dir, line, message):
    (yolo_dir / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_detection_dataset(yolo_dir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: images/train\n", "no data set found|names"),
        ("train: images/train\nnames: [cat, cat]\n", r"data\.yaml: class names must be unique, got \['cat'\]"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", r"data\.yaml: nc is 3 but there are 2 names"),
        ("train: images/nowhere\nnames: [cat, dog]\n", r"data\.yaml: train: no such folder"),
        ("names: [cat, dog]\n", "expected train, val or test"),
        ("names: [cat\n", "not valid YAML"),
    ],
)
def test_damaged_yaml_is_named(yolo_dir, content, message):
    (yolo_dir / "data.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_detection_dataset(yolo_dir)


def test_a_split_without_any_label_file_is_an_error_not_a_set_of_empty_pictures(yolo_dir):
    for path in (yolo_dir / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of the 3 images has a label file"):
        load_detection_dataset(yolo_dir)


def test_labels_without_a_picture_are_counted(yolo_dir):
    (yolo_dir / "images/train/b.png").unlink()
    with pytest.warns(UserWarning, match=r"1 label files have no image, such as b\.txt"):
        load_detection_dataset(yolo_dir)
