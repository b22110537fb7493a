import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_detr.data.checks import check_dataset
from hf_detr.data.contact_sheet import draw_contact_sheet
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.synthetic.digits import digit_scenes

from .tiny_data import SCENES, coco_content, voc_xml, write_picture


def found(report) -> set[tuple]:
    return {(problem.severity, problem.kind, problem.split) for problem in report.problems}


def change_coco(root, change, split="train2017"):
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_data_set_has_numbers_and_no_problems(coco_dir):
    report = check_dataset(coco_dir)
    assert report.problems == []
    train = report.splits["train"]
    assert (train.images, train.objects, train.images_without_objects, train.crowds) == (3, 3, 1, 0)
    assert train.objects_by_class == {"cat": 1, "dog": 2}
    assert (train.image_width_px.min, train.image_height_px.max) == (40, 30)
    assert (train.objects_per_image.min, train.objects_per_image.max) == (0, 2)
    assert train.small_medium_large == (2, 1, 0)
    assert report.original_ids == [3, 7]
    text = report.text()
    for expected in (
        "no problems",
        "3 images, 3 objects, 1 image without objects",
        "num_queries=100 is enough",
        "dog",
    ):
        assert expected in text
    assert json.loads(json.dumps(report.to_dict()))["splits"]["validation"]["images"] == 3


def test_every_kind_of_bad_box_is_found_with_its_annotation_and_nothing_raises(coco_dir):
    boxes = {1: [float("nan"), 1, 2, 3], 2: [5, 5, -2, 3], 3: [39, 29, 20, 20]}

    def change(content):
        for one in content["annotations"]:
            one["bbox"] = boxes[one["id"]]
        content["annotations"].append({**content["annotations"][0], "id": 4, "bbox": [5, 5, 0, 3]})
        content["annotations"].append({**content["annotations"][0], "id": 5, "bbox": [90, 5, 3, 3]})

    change_coco(coco_dir, change)
    report = check_dataset(coco_dir)
    kinds = {problem.kind: problem.where for problem in report.errors}
    assert set(kinds) == {
        "box: not finite",
        "box: negative size",
        "box: partly outside the image",
        "box: no area",
        "box: outside the image",
    }
    assert "instances_train2017.json: annotation 1 (annotations[0]) of a.png" in kinds["box: not finite"]
    assert report.splits["train"].bad_boxes == 5
    assert report.splits["validation"].bad_boxes == 0


def test_corners_and_fractions_are_recognised(coco_dir):
    def corners(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x, y, x + w, y + h]

    def fractions(content):
        for one in content["annotations"]:
            x, y, w, h = one["bbox"]
            one["bbox"] = [x / 40, y / 30, w / 40, h / 30]

    change_coco(coco_dir, corners)
    change_coco(coco_dir, fractions, "val2017")
    kinds = found(check_dataset(coco_dir))
    assert ("error", "corners given as xywh", "train") in kinds
    assert ("error", "fractions given as pixels", "validation") in kinds
    assert ("error", "fractions given as pixels", "train") not in kinds


def test_pictures_missing_corrupt_or_of_another_size_are_found(coco_dir):
    train = coco_dir / "train2017"
    (train / "a.png").unlink()
    content = (train / "b.png").read_bytes()
    (train / "b.png").write_bytes(content[:-30])
    write_picture(train / "empty.png", 77, (30, 30))
    (coco_dir / "val2017/a.png").write_bytes(b"hello")
    report = check_dataset(coco_dir)
    where = {(problem.kind, problem.split): problem.where for problem in report.errors}
    assert where["missing image", "train"].endswith("a.png)")
    assert where["corrupt image", "train"].endswith("b.png)")
    assert where["size differs", "train"].endswith("empty.png)")
    assert where["corrupt image", "validation"].endswith("a.png)")
    assert report.splits["train"].images == 3  # missing ones are counted, not forgotten
    quick = check_dataset(coco_dir, decode_images=False)
    assert ("error", "corrupt image", "train") not in found(quick)
    assert ("error", "corrupt image", "validation") in found(quick)


def test_ids_objects_and_pictures_given_twice_are_found(coco_dir):
    def change(content):
        content["images"].append({**content["images"][0], "file_name": "copy.png"})
        content["annotations"].append(dict(content["annotations"][0]))
        content["annotations"].append({**content["annotations"][0], "id": 77})
        content["images"].append({**content["images"][0], "id": 999, "file_name": "twin.png"})

    shutil.copy(coco_dir / "train2017/a.png", coco_dir / "train2017/twin.png")
    change_coco(coco_dir, change)
    kinds = found(check_dataset(coco_dir))
    assert ("error", "duplicate id", "train") in kinds
    assert ("warning", "duplicate object", "train") in kinds
    assert ("warning", "duplicate image", "train") in kinds


def test_pictures_in_two_splits_are_leaks_but_trainval_is_none(coco_dir, voc_dir):
    shutil.copy(coco_dir / "train2017/a.png", coco_dir / "val2017/a.png")
    (leak,) = check_dataset(coco_dir).errors
    assert (leak.kind, leak.split) == ("leak between splits", "validation")
    assert "val2017/a.png" in leak.where
    assert "train2017/a.png" in leak.message
    assert check_dataset(voc_dir).problems == []


def test_a_bad_box_listed_in_train_and_trainval_is_one_problem(voc_dir):
    xml = voc_xml("a", SCENES["a"]).replace("<xmax>35</xmax>", "<xmax>21</xmax>")
    (voc_dir / "Annotations/a.xml").write_text(xml)
    (problem,) = check_dataset(voc_dir).errors
    assert problem.where.endswith("a.xml:14")


def test_unknown_classes_and_damaged_annotations_are_collected(coco_dir, voc_dir, yolo_dir):
    def change(content):
        content["annotations"][0]["category_id"] = 9
        content["annotations"][1].pop("bbox")
        content["annotations"][2]["image_id"] = 9

    change_coco(coco_dir, change)
    kinds = {kind for _, kind, _ in found(check_dataset(coco_dir))}
    assert {"unknown class", "corrupt annotation", "unknown image"} <= kinds

    (voc_dir / "Annotations/a.xml").write_text("<annotation>")
    assert [problem.kind for problem in check_dataset(voc_dir).errors] == ["corrupt annotation"]

    (yolo_dir / "labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1\n1 0 0 1 0 1 1 0\n0 0.5 0.5 0.1 0.1")
    problems = check_dataset(yolo_dir).errors
    assert [(one.kind, one.where.rsplit(":", 1)[1]) for one in problems] == [
        ("unknown class", "1"),
        ("corrupt annotation", "2"),
    ]


def test_too_many_objects_for_the_queries_and_unused_classes_are_found(coco_dir):
    change_coco(coco_dir, lambda content: content["categories"].append({"id": 12, "name": "bird"}))
    report = check_dataset(coco_dir, num_queries=1)
    assert ("error", "more objects than queries", "train") in found(report)
    assert "num_queries=1 is NOT ENOUGH" in report.text()
    (unused,) = [one for one in report.warnings if one.kind == "class without objects"]
    assert "'bird'" in unused.where


def test_datasets_objects_are_checked_too(tmp_path):
    scenes = digit_scenes(6, image_size=48)
    assert check_dataset({"train": scenes}).errors == []

    def change(row, index):
        objects = row["objects"]
        if index == 2:
            objects["bbox"][0] = [0.0, 0.0, 0.0, 5.0]
        return {"objects": objects, "image_id": 0 if index == 1 else index}

    broken = scenes.map(change, with_indices=True)
    report = check_dataset(broken)
    assert found(report) >= {("error", "box: no area", "train"), ("error", "duplicate id", "train")}
    assert "image_id 2 (split 'train'), object" in next(p.where for p in report.errors if p.kind == "box: no area")
    assert found(check_dataset(broken.to_iterable_dataset())) == found(report)


def test_many_problems_are_all_in_the_report_and_few_in_the_text(tmp_path):
    content = coco_content()
    content["annotations"] = [
        {"id": index, "image_id": 100, "category_id": 3, "bbox": [1, 1, 0, index + 1]} for index in range(30)
    ]
    for stem in SCENES:
        write_picture(tmp_path / f"{stem}.png", len(stem))
    (tmp_path / "train.json").write_text(json.dumps(content))
    report = check_dataset(tmp_path)
    assert sum(one.kind == "box: no area" for one in report.errors) == 30
    assert "box: no area: 30 (train 30)" in report.text()
    assert "... and 25 more" in report.text()


def test_bccd_is_read_to_the_end_and_its_two_boxes_without_area_are_named(bccd):
    report = check_dataset(bccd)
    assert {summary.images for summary in report.splits.values()} == {205, 87, 72, 292}
    assert sum(report.splits[split].objects for split in ("train", "validation", "test")) == 4888
    where = sorted(problem.where.rsplit("/", 1)[1] for problem in report.errors)
    assert where == ["BloodImage_00338.xml:158", "BloodImage_00343.xml:50"]
    assert {problem.kind for problem in report.problems} == {"box: no area"}


def test_a_contact_sheet_shows_pictures_with_their_boxes(coco_dir, tmp_path):
    dataset = load_detection_dataset(coco_dir)["train"]
    path = draw_contact_sheet(dataset, tmp_path / "new" / "sheet.png", n=8, columns=2, tile_px=160)
    sheet = np.asarray(Image.open(path)).astype(int)
    assert sheet.shape == (320, 320, 3)
    # picture a is drawn from (2, 17) at a scale of 142 / 30 or 156 / 40, whichever is less
    scale = 156 / 40
    x, y, _w, h = SCENES["a"][0][1]
    left, top, bottom = 2 + x * scale, 17 + y * scale, 17 + (y + h) * scale
    edge = sheet[int(top) + 15 : int(bottom) - 3, round(left)]
    assert np.abs(edge - (0x3C, 0xB4, 0x4B)).max() < 8  # cat is class 1: green


def test_a_contact_sheet_survives_what_it_is_there_to_show(coco_dir, tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = [float("nan"), 1, 2, 3]
        content["annotations"][1]["bbox"] = [20, 10, -5, 3]

    change_coco(coco_dir, change)
    (coco_dir / "train2017/b.png").write_bytes(b"hello")
    for streaming in (False, True):
        dataset = load_detection_dataset(coco_dir, on_bad_box="keep", streaming=streaming)["train"]
        assert draw_contact_sheet(dataset, tmp_path / "sheet.jpg").stat().st_size > 0
    with pytest.raises(ValueError, match="empty data set"):
        draw_contact_sheet(digit_scenes(0), tmp_path / "sheet.png")


def test_a_contact_sheet_escapes_class_names_that_cannot_be_written(coco_dir, tmp_path):
    sheets = []
    for number, name in enumerate(("two\nlines\u202e", r"two\nlines\u202e", "two lines")):
        for split in ("train2017", "val2017"):
            change_coco(coco_dir, lambda content, name=name: content["categories"][0].update(name=name), split)
        dataset = load_detection_dataset(coco_dir)["train"]
        sheets.append(Image.open(draw_contact_sheet(dataset, tmp_path / f"{number}.png")).tobytes())
    assert sheets[0] == sheets[1] != sheets[2]
