import warnings

import pytest

from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import class_names

from ..tiny_data import SCENES, voc_xml, write_picture


def test_a_voc_folder_comes_in_with_its_splits_and_pixel_exact_boxes(voc_dir):
    dataset = load_detection_dataset(voc_dir)
    assert list(dataset) == ["train", "validation", "trainval"]
    assert class_names(dataset) == ["cat", "dog"]
    row = dataset["train"][0]
    assert row["image"].size == (row["width"], row["height"]) == (40, 30)
    assert row["objects"]["bbox"] == [list(box) for _, box in SCENES["a"]]
    assert row["objects"]["area"] == [120, 300]
    # xmin 1, xmax width: the whole picture
    assert dataset["validation"][0]["objects"]["bbox"] == [[0, 0, 40, 30]]
    assert dataset["train"][1]["objects"]["bbox"] == []  # a picture without objects stays


def test_an_image_keeps_its_number_in_every_split(voc_dir):
    dataset = load_detection_dataset(voc_dir)
    number = {row["objects"]["bbox"][0][2]: row["image_id"] for row in dataset["trainval"] if row["objects"]["bbox"]}
    assert dataset["train"][0]["image_id"] == number[10]
    assert dataset["validation"][0]["image_id"] == number[40]
    alone = load_detection_dataset(voc_dir, splits="val")
    assert list(alone) == ["validation"]
    assert alone["validation"][0]["image_id"] == number[40]
    assert class_names(alone) == ["cat", "dog"]


def test_corners_from_zero_on_request(voc_dir):
    (voc_dir / "Annotations/b.xml").write_text(voc_xml("b", [("dog", (-1.0, -1.0, 41.0, 31.0))]))  # 0, 0, 40, 30
    assert load_detection_dataset(voc_dir, voc_first_pixel=0)["validation"][0]["objects"]["bbox"] == [[0, 0, 40, 30]]
    # read as VOC's own, one pixel over the edge is brought back
    assert load_detection_dataset(voc_dir)["validation"][0]["objects"]["bbox"] == [[0, 0, 40, 30]]


def test_without_lists_everything_is_train(voc_dir):
    for path in (voc_dir / "ImageSets/Main").iterdir():
        path.unlink()
    dataset = load_detection_dataset(voc_dir)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3}


def test_xml_beside_pictures_in_split_folders(tmp_path):
    for split in ("train", "valid"):
        write_picture(tmp_path / split / "one.jpg")
        (tmp_path / split / "one.xml").write_text(voc_xml("one", SCENES["a"], size_wh=None))
    dataset = load_detection_dataset(tmp_path)
    assert list(dataset) == ["train", "validation"]
    assert dataset["validation"][0]["width"] == 40  # from the picture's header


def test_difficult_objects_stay_or_are_ignored_like_crowds(voc_dir):
    (voc_dir / "Annotations/b.xml").write_text(voc_xml("b", SCENES["b"], difficult=1))
    assert load_detection_dataset(voc_dir)["validation"][0]["objects"]["iscrowd"] == [0]
    ignored = load_detection_dataset(voc_dir, voc_difficult="ignore")
    assert ignored["validation"][0]["objects"]["iscrowd"] == [1]
    assert ignored["train"][0]["objects"]["iscrowd"] == [0, 0]


def test_given_class_names_fix_the_order_and_unknown_ones_are_named(voc_dir):
    assert load_detection_dataset(voc_dir, class_names=["dog", "cat"])["train"][0]["objects"]["category"] == [1, 0]
    with pytest.raises(ValueError, match=r"a\.xml:4: unknown class 'cat'.*\['dog'\]"):
        load_detection_dataset(voc_dir, class_names=["dog"])


def test_a_box_without_area_stops_loading_and_names_its_line(voc_dir):
    xml = voc_xml("a", SCENES["a"]).replace("<xmax>35</xmax>", "<xmax>21</xmax>")
    (voc_dir / "Annotations/a.xml").write_text(xml)
    with pytest.raises(ValueError, match=r"a\.xml:14: box \[20, 3, 0, 19\].*no area.*on_bad_box='drop'"):
        load_detection_dataset(voc_dir)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_detection_dataset(voc_dir, on_bad_box="drop")
    assert len(dataset["train"][0]["objects"]["bbox"]) == 1
    said = [str(one.message) for one in caught]
    assert [text for text in said if "split 'train': of 2 boxes 1 dropped (no area: 1)" in text], said
    assert len(said) == 2  # train and trainval; nothing for the split without bad boxes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "JPEGImages/a.png").unlink(), r"a\.png: no such image.*1 of 2 images"),
        (lambda root: (root / "Annotations/a.xml").unlink(), r"train\.txt:1: no annotation file"),
        (lambda root: (root / "Annotations/a.xml").write_text("<annotation>\n<oops"), r"a\.xml:2: not well-formed"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("b\nb\n"), r"val\.txt:2: 'b' a second time"),
        (
            lambda root: (root / "Annotations/a.xml").write_text(
                voc_xml("a", SCENES["a"]).replace("<xmin>5</xmin>", "")
            ),
            r"a\.xml:4: expected a bndbox with four numbers",
        ),
    ],
)
def test_damaged_voc_data_is_named_with_file_and_line(voc_dir, change, message):
    change(voc_dir)
    with pytest.raises(ValueError, match=message):
        load_detection_dataset(voc_dir)


def test_annotations_in_no_list_are_counted(voc_dir):
    (voc_dir / "Annotations/c.xml").write_text(voc_xml("c", []))
    with pytest.warns(UserWarning, match="1 annotation files are in no list"):
        load_detection_dataset(voc_dir)


def test_bccd_stops_at_its_boxes_without_area_and_counts_them_when_told_to(bccd):
    with pytest.raises(ValueError, match=r"BloodImage_00343\.xml:50: .*no area"):
        load_detection_dataset(bccd)
    with pytest.warns(UserWarning, match=r"of 2,805 boxes 1 dropped"):
        dataset = load_detection_dataset(bccd, on_bad_box="drop")
    assert {split: len(rows) for split, rows in dataset.items()} == {
        "train": 205,
        "validation": 87,
        "test": 72,
        "trainval": 292,
    }
    assert class_names(dataset) == ["Platelets", "RBC", "WBC"]
    counts = {split: sum(len(one["id"]) for one in rows["objects"]) for split, rows in dataset.items()}
    assert counts["train"] + counts["validation"] + counts["test"] == 4888 - 2
    for row in dataset["test"].remove_columns("image"):
        for x, y, w, h in row["objects"]["bbox"]:
            assert x >= 0
            assert y >= 0
            assert x + w <= 640
            assert y + h <= 480
