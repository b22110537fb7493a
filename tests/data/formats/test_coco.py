import json

import pytest
from datasets import Image

from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import class_names, original_category_ids

from ..tiny_data import SCENES, coco_content, write_picture, write_pictures


def rewrite(root, change, split="train2017"):
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco_ids_become_contiguous_in_their_order_and_are_kept(coco_dir):
    dataset = load_detection_dataset(coco_dir)
    assert list(dataset) == ["train", "validation"]
    assert class_names(dataset) == ["dog", "cat"]  # ids 3 and 7
    assert original_category_ids(dataset) == [3, 7]
    row = dataset["train"][0]
    assert row["image_id"] == 100
    assert row["objects"] == {
        "id": [1, 2],
        "bbox": [list(box) for _, box in SCENES["a"]],
        "category": [1, 0],
        "area": [60, 150],  # the mask's
        "iscrowd": [0, 0],
    }
    assert dataset["train"][2]["objects"]["id"] == []


def test_one_file_per_split_beside_the_pictures(tmp_path):
    for split in ("train", "valid", "test"):
        write_pictures(tmp_path / split)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_content((1, 2))))
    dataset = load_detection_dataset(tmp_path)
    assert list(dataset) == ["train", "validation", "test"]
    assert original_category_ids(dataset) == [1, 2]
    assert dataset["test"][1]["image"].size == (40, 30)


def test_a_single_json_with_pictures_elsewhere(tmp_path):
    write_pictures(tmp_path / "somewhere")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco_content()))
    with pytest.raises(ValueError, match=r"a\.png: no such image.*3 of 3 images are missing"):
        load_detection_dataset(path)
    assert len(load_detection_dataset(path, image_dir=tmp_path / "somewhere")["train"]) == 3


def test_missing_area_and_iscrowd_are_filled_in_and_crowds_kept(coco_dir):
    def change(content):
        del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
        content["annotations"][1]["iscrowd"] = 1

    rewrite(coco_dir, change)
    objects = load_detection_dataset(coco_dir, splits="train")["train"][0]["objects"]
    assert objects["area"] == [120, 150]
    assert objects["iscrowd"] == [0, 1]


def test_corners_in_a_coco_file_are_read_as_told(coco_dir):
    def change(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x, y, x + w, y + h]

    rewrite(coco_dir, change)
    with pytest.raises(ValueError, match="partly outside the image"):
        load_detection_dataset(coco_dir, splits=["train"])
    read = load_detection_dataset(coco_dir, splits=["train"], bbox_format="xyxy")["train"][0]["objects"]["bbox"]
    assert read == [list(box) for _, box in SCENES["a"]]


def test_fractions_are_not_taken_for_pixels(coco_dir):
    def change(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x / 40, y / 30, w / 40, h / 30]

    rewrite(coco_dir, change)
    with pytest.raises(ValueError, match=r"all 3 boxes of split 'train' are numbers up to 1.*xywh_fraction"):
        load_detection_dataset(coco_dir, splits=["train"])
    read = load_detection_dataset(coco_dir, splits=["train"], bbox_format="xywh_fraction")["train"][0]["objects"]
    assert read["bbox"][0] == pytest.approx([4, 6, 10, 12], abs=1e-5)


@pytest.mark.parametrize(
    ("box", "kind", "clipped"),
    [
        ([30.0, 20.0, 20.0, 5.0], "partly outside the image", [30, 20, 10, 5]),
        ([float("nan"), 1.0, 2.0, 3.0], "not finite", None),
        ([5.0, 5.0, -2.0, 3.0], "negative size", None),
        ([5.0, 5.0, 0.0, 3.0], "no area", None),
        ([50.0, 5.0, 3.0, 3.0], "outside the image", None),
    ],
)
def test_bad_boxes_raise_are_dropped_or_clipped_and_always_counted(coco_dir, box, kind, clipped):
    rewrite(coco_dir, lambda content: content["annotations"][0].update(bbox=box))
    arguments = {"source": coco_dir, "splits": "train"}
    with pytest.raises(ValueError, match=rf"annotation 1 \(annotations\[0\]\) of a\.png: box .*{kind}"):
        load_detection_dataset(**arguments)
    with pytest.warns(UserWarning, match=rf"of 3 boxes 1 dropped \({kind}: 1\)"):
        dropped = load_detection_dataset(**arguments, on_bad_box="drop")["train"]
    assert dropped[0]["objects"]["id"] == [2]
    assert "1 dropped" in dropped.info.description
    with pytest.warns(UserWarning, match="1 clipped to the image" if clipped else "1 dropped"):
        rows = load_detection_dataset(**arguments, on_bad_box="clip")["train"]
    assert rows[0]["objects"]["bbox"] == ([clipped] if clipped else []) + [[20, 3, 15, 20]]
    kept = load_detection_dataset(**arguments, on_bad_box="keep")["train"]
    assert len(kept[0]["objects"]["bbox"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].pop("bbox"), r"annotation 1 .*a\.png: expected bbox as four numbers, got None"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"expected bbox as four numbers, got \[1, 2, 3\]"),
        (
            lambda c: c["annotations"][0].update(category_id=9),
            r"unknown category_id 9, the categories are \{3: 'dog', 7",
        ),
        (lambda c: c["annotations"][0].update(image_id=9), r"image_id 9 is none of the images"),
        (lambda c: c["annotations"][0].update(id=2), r"annotation 2 .*expected a whole number of its own"),
        (lambda c: c["images"][0].update(id=101), r"images\[1\]: image id 101 of 'b.png' is that of 'a.png'"),
        (lambda c: c["images"][0].update(id="x1"), r"images\[0\]: expected a whole number"),
        (lambda c: c["images"][0].update(file_name="no.png"), r"no\.png: no such image.*1 of 3"),
        (lambda c: c["categories"][0].update(name="dog"), r"class names must be unique, got \['dog'\]"),
        (lambda c: c["categories"][0].update(name="lion"), r"category 7 is 'cat' here and 'lion' in .*train2017"),
        (lambda c: c.pop("categories"), r"no data set found|categories.* missing"),
    ],
)
def test_damaged_coco_data_is_named_with_file_and_entry(coco_dir, change, message):
    rewrite(coco_dir, change)
    if "unique" in message:
        rewrite(coco_dir, change, "val2017")
    with pytest.raises(ValueError, match=message):
        load_detection_dataset(coco_dir)


def test_broken_json_is_named(coco_dir):
    path = coco_dir / "annotations/instances_train2017.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"instances_train2017\.json: not valid JSON"):
        load_detection_dataset(coco_dir, format="coco")


def test_sizes_missing_from_the_file_are_read_upright_from_the_picture(coco_dir):
    from PIL import Image

    for index in range(2):
        rewrite(coco_dir, lambda content, index=index: content["images"][index].pop("width"))
    picture = coco_dir / "train2017/b.png"
    turned = Image.new("RGB", (30, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter: 40 x 30
    turned.save(picture, exif=exif)
    dataset = load_detection_dataset(coco_dir, splits="train")["train"]
    assert [(row["width"], row["height"]) for row in dataset] == [(40, 30)] * 3
    assert dataset[1]["image"].size == (40, 30)
    write_picture(picture).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png: not a readable image"):
        load_detection_dataset(coco_dir, splits="train")


@pytest.mark.parametrize("name", ["../../outside.png", "{}/outside.png"])
def test_an_image_that_lies_outside_is_not_opened_and_its_name_is_told(coco_dir, tmp_path, name):
    """`image_dir` says where images may be; the annotations alone do not."""
    name = name.format(tmp_path)
    write_picture(tmp_path / "outside.png")
    listed = coco_dir / "annotations" / "instances_train2017.json"
    listed.write_text(listed.read_text().replace('"a.png"', json.dumps(name)))
    with pytest.warns(UserWarning, match="leads out of the folders"), pytest.raises(ValueError, match="no such image"):
        load_detection_dataset(coco_dir, splits="train")
    write_picture(coco_dir / "train2017" / "outside.png")  # of that base name
    with pytest.warns(UserWarning, match="found by their base name"):
        rows = load_detection_dataset(coco_dir, splits="train")["train"]
    rows = rows.cast_column("image", Image(decode=False))
    assert rows[0]["image"]["path"] == str(coco_dir / "train2017" / "outside.png")
    if name.startswith(str(tmp_path)):
        for stem in ("b", "empty"):
            write_picture(tmp_path / f"{stem}.png")
        rows = load_detection_dataset(coco_dir, splits="train", image_dir=tmp_path)["train"]
        assert rows.cast_column("image", Image(decode=False))[0]["image"]["path"] == name
