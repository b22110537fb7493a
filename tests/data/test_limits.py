"""What no data set should hold: one line with file and place, quickly; and a report of all the rest."""

import json
import re
import time
import tracemalloc

import pytest

from hf_detr.cli.main import main
from hf_detr.data.checks import check_dataset
from hf_detr.data.loading import load_detection_dataset

from .tiny_data import SCENES, coco_content, voc_xml, write_picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def one_error(source, **options):
    """The problem that both check and load name, in one line."""
    with pytest.raises(ValueError, match=r".") as raised:
        load_detection_dataset(source, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_yaml_alias_bomb_costs_nothing(yolo_dir):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (yolo_dir / "data.yaml").write_text("\n".join([*bomb, "train: images/train", "names: *a9"]))
    tracemalloc.start()
    begun = time.perf_counter()
    assert "data.yaml: not valid YAML (line 2: the alias *a0 is no plain value)" in one_error(yolo_dir)
    assert time.perf_counter() - begun < 2
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    (yolo_dir / "data.yaml").write_text("train: &t images/train\nval: *t\nnames: [cat, dog]\n")
    assert list(load_detection_dataset(yolo_dir)) == ["train", "validation"]  # an alias of a word is harmless


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' * 100_000, "9" * 10_000, "\ufeff", "[1, 2"])
def test_json_that_no_parser_likes_is_one_line(coco_dir, text):
    path = coco_dir / "annotations/instances_train2017.json"
    path.write_text(text)
    assert str(path) in one_error(coco_dir, format="coco")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(id=2**63), r"images\[0\]: expected a whole number of 64 bits"),
        (lambda c: c["annotations"][0].update(id=2**70), r"annotations\[0\].*expected a whole number of its own"),
        (lambda c: c["annotations"][0].update(id=1.5), r"annotations\[0\].*expected a whole number of its own"),
        (lambda c: c["categories"][0].update(id=2**63), r"categories\[0\]: expected a whole number as category id"),
        (
            lambda c: c["images"][0].update(width=float("inf")),
            r"images\[0\]: expected width and height in whole pixels",
        ),
        (lambda c: c["images"][0].update(height=-4), r"images\[0\]: expected width and height in whole pixels"),
        (lambda c: c["images"][0].update(height=2**40), r"images\[0\]: expected width and height in whole pixels"),
        (lambda c: c["images"].insert(0, None), r"images\[0\]: expected an object \{...\}, got None"),
        (lambda c: c["annotations"].append(None), r"annotations\[3\]: expected an object \{...\}, got None"),
        (lambda c: c.update(categories=["cat", "dog"]), r"categories\[0\]: expected an object \{...\}, got 'cat'"),
        (lambda c: c["categories"][0].update(name=None), r"categories\[0\]: expected a name, got None"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]),
            r"annotations\[0\].*expected bbox as four numbers",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 10**400, 4]), r"annotations\[0\].*expected bbox as four"),
        (lambda c: c["annotations"][0].update(area=-1), r"annotations\[0\].*expected area in square pixels, got -1"),
        (lambda c: c["annotations"][0].update(area=float("nan")), r"annotations\[0\].*expected area in square pixels"),
        (
            lambda c: c["annotations"][0].update(area=[1]),
            r"annotations\[0\].*expected area in square pixels, got \[1\]",
        ),
    ],
)
def test_impossible_values_are_found_by_check_and_refused_in_one_line(coco_dir, change, message):
    path = coco_dir / "annotations/instances_train2017.json"
    content = coco_content()
    change(content)
    path.write_text(json.dumps(content))
    said = one_error(coco_dir, splits="train")
    assert said.startswith(f"{path}: ")
    assert re.search(message, said), said
    report = check_dataset(coco_dir, splits="train")
    assert any(re.search(message, f"{one.where}: {one.message}") for one in report.errors)


@pytest.mark.parametrize(
    ("width", "words"), [("1e999", "whole pixels"), ("-3", "whole pixels"), ("wide", "whole pixels")]
)
def test_an_infinite_size_in_xml_is_one_line(voc_dir, width, words):
    path = voc_dir / "Annotations/a.xml"
    path.write_text(voc_xml("a", SCENES["a"]).replace("<width>40<", f"<width>{width}<"))
    said = one_error(voc_dir)
    assert said.startswith(f"{path}: ")
    assert "expected width and height in whole pixels" in said


def test_a_null_image_id_or_area_of_a_row_is_found(tmp_path):
    from hf_detr.data.synthetic.digits import digit_scenes

    scenes = digit_scenes(3, image_size=32)
    for column, kind in (("image_id", "bad id"), ("width", "bad size")):
        broken = scenes.map(lambda row, i, column=column: {column: None if i == 1 else row[column]}, with_indices=True)
        assert kind in {one.kind for one in check_dataset(broken).errors}
        assert "row 1" in one_error(broken)

    def change(row, index):
        areas = [float("nan")] * len(row["objects"]["area"]) if index == 2 else row["objects"]["area"]
        return {"objects": {**row["objects"], "area": areas}}

    broken = scenes.map(change, with_indices=True)
    assert check_dataset(broken).errors[0].kind == "bad area"
    assert "area nan" in one_error(broken)


def test_check_reports_everything_where_no_class_could_be_read(voc_dir, capsys):
    for path in (voc_dir / "Annotations").glob("*.xml"):
        path.write_text("<annotation><oops")
    report = check_dataset(voc_dir)
    assert sum(one.kind == "corrupt annotation" for one in report.errors) == 3
    assert "no class" in {one.kind for one in report.errors}
    assert main(["check", str(voc_dir)]) == 1
    assert "0 classes" in capsys.readouterr().out


def test_images_without_xml_are_counted(voc_dir, tmp_path):
    write_picture(voc_dir / "JPEGImages/more.png", 99)
    (problem,) = check_dataset(voc_dir).problems
    assert (problem.severity, problem.kind) == ("warning", "image without annotation")
    assert "1 of 4 images have no XML file and are not read, such as more.png" in problem.message
    with pytest.warns(UserWarning, match="1 of 4 images have no XML file"):
        load_detection_dataset(voc_dir)
    for split in ("train", "valid"):
        write_picture(tmp_path / "beside" / split / "one.jpg", len(split))
        (tmp_path / "beside" / split / "one.xml").write_text(voc_xml("one", SCENES["a"]))
    write_picture(tmp_path / "beside" / "valid" / "two.jpg", 77)
    assert [one.message[:6] for one in check_dataset(tmp_path / "beside").warnings] == ["1 of 2"]


def test_an_image_that_lost_all_its_objects_is_not_without_objects_in_silence(coco_dir, voc_dir):
    content = coco_content()
    for one in content["annotations"]:
        one["category_id"] = 9
    (coco_dir / "annotations/instances_train2017.json").write_text(json.dumps(content))
    report = check_dataset(coco_dir)
    assert report.splits["train"].images_without_objects == 3
    assert report.splits["train"].images_that_lost_all == 2
    assert "3 images without objects (2 of them because all of theirs are at fault" in report.text()
    report = check_dataset(voc_dir, class_names=["dog"])
    assert report.splits["train"].images_that_lost_all == 0  # one of two is left
    report = check_dataset(voc_dir, class_names=["cat"])
    assert report.splits["validation"].images_that_lost_all == 1


def test_data_that_cannot_train_is_an_error_of_check(coco_dir, tmp_path):
    (coco_dir / "annotations/instances_train2017.json").rename(coco_dir / "annotations/instances_test2017.json")
    (coco_dir / "train2017").rename(coco_dir / "test2017")
    assert "no training split" in {one.kind for one in check_dataset(coco_dir).errors}
    assert check_dataset(coco_dir, splits="test").errors == []
    (coco_dir / "annotations/instances_test2017.json").unlink()
    content = coco_content()
    (coco_dir / "annotations/instances_val2017.json").write_text(
        json.dumps(content | {"images": content["images"][2:], "annotations": []})
    )
    assert "too few images" in {one.kind for one in check_dataset(coco_dir).errors}


def test_boxes_that_are_dropped_or_clipped_are_warnings(coco_dir):
    content = coco_content()
    content["annotations"][0]["bbox"] = [5, 5, 0, 3]
    (coco_dir / "annotations/instances_train2017.json").write_text(json.dumps(content))
    assert [one.kind for one in check_dataset(coco_dir).errors] == ["box: no area"]
    for policy in ("drop", "clip"):
        report = check_dataset(coco_dir, on_bad_box=policy)
        assert report.errors == []
        assert "box: no area" in {one.kind for one in report.warnings}
