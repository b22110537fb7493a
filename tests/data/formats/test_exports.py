"""Data sets as annotation tools write them, the smallest of each kind; docs/data.md lists them."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_detr.data.checks import check_dataset
from hf_detr.data.loading import find_format, load_detection_dataset
from hf_detr.data.schema import class_names, original_category_ids

from ..tiny_data import SCENES, SIZE_WH, coco_content, voc_xml, write_picture, write_pictures


def boxes(split) -> list:
    """Boxes of every image, in the order of the file names, rounded to hundredths of a pixel."""
    rows = sorted(split.cast_column("image", Image(decode=False)), key=lambda row: row["image"]["path"].split("/")[-1])
    return [[[round(value, 2) for value in box] for box in row["objects"]["bbox"]] for row in rows]


SCENE_BOXES = [[list(box) for _, box in objects] for objects in SCENES.values()]


def yolo_line(name: str, box, number: int | None = None) -> str:
    (x, y, w, h), (width, height) = box, SIZE_WH
    values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return " ".join([str(("cat", "dog").index(name) if number is None else number), *(f"{v:.6f}" for v in values)])


def write_labels(folder, stems=SCENES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}.txt").write_text("\n".join(yolo_line(*one) for one in SCENES[stem]))


def write_coco(path, **changes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco_content() | changes))


def images_named(template: str) -> list:
    return [{**one, "file_name": template.format(one["file_name"])} for one in coco_content()["images"]]


# ---- one split, whatever its name, is what there is to train on


def cvat_coco(root):
    write_pictures(root / "images" / "default")
    write_coco(root / "annotations" / "instances_default.json")


def cvat_coco_subset(root):
    write_pictures(root / "images" / "Train")
    write_coco(root / "annotations" / "instances_Train.json")


def label_studio_coco(root):
    write_pictures(root / "images")
    write_coco(root / "result.json", images=images_named("images\\{}"))


def kaggle_voc(root, name="annotations"):
    write_pictures(root / "images")
    (root / name).mkdir()
    for stem, objects in SCENES.items():
        (root / name / f"{stem}.xml").write_text(voc_xml(stem, objects))


def kaggle_voc_annots(root):
    kaggle_voc(root, "annots")


def cvat_voc(root):
    kaggle_voc(root, "Annotations")
    (root / "images").rename(root / "JPEGImages")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "default.txt").write_text("a\nb\nempty\n")


def label_img(root):
    write_pictures(root)
    for stem, objects in SCENES.items():
        (root / f"{stem}.xml").write_text(voc_xml(stem, objects))


def label_studio_yolo(root):
    write_pictures(root / "images")
    write_labels(root / "labels")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "notes.json").write_text('{"categories": [], "info": {}}')


def cvat_darknet(root):
    write_pictures(root / "obj_train_data")
    write_labels(root / "obj_train_data")
    (root / "obj.names").write_text("cat\ndog\n")
    (root / "obj.data").write_text("classes = 2\nnames = data/obj.names\ntrain = data/train.txt\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{stem}.png\n" for stem in SCENES))


def cvat_ultralytics(root):
    write_pictures(root / "images" / "train")
    write_labels(root / "labels" / "train")
    (root / "data.yaml").write_text("names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    (root / "train.txt").write_text("".join(f"data/images/train/{stem}.png\n" for stem in SCENES))


def kaggle_paths_of_another_machine(root):
    write_pictures(root / "images" / "train")
    write_labels(root / "labels" / "train")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: /content/datasets/mine/images/train\nval:\n")


LONE = [cvat_coco, cvat_coco_subset, label_studio_coco, kaggle_voc, kaggle_voc_annots, cvat_voc, label_img,
        label_studio_yolo, cvat_darknet, cvat_ultralytics, kaggle_paths_of_another_machine]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*found by their base name")
@pytest.mark.parametrize("write", LONE)
def test_a_lone_split_of_any_tool_is_train_and_a_part_of_it_can_be_held_out(tmp_path, write):
    write(tmp_path)
    data = load_detection_dataset(tmp_path)
    assert list(data) == ["train"]
    assert sorted(class_names(data)) == ["cat", "dog"]
    assert boxes(data["train"]) == SCENE_BOXES
    assert check_dataset(tmp_path).errors == []
    parts = load_detection_dataset(tmp_path, hold_out=0.4, seed=3)
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 2, "validation": 1}
    assert parts["train"].features == data["train"].features
    again = load_detection_dataset(tmp_path, hold_out=0.4, seed=3)
    assert again["validation"]["image_id"] == parts["validation"]["image_id"]


def test_holding_out_leaves_other_splits_as_they_are_and_needs_two_images(coco_dir, tmp_path):
    assert {k: len(v) for k, v in load_detection_dataset(coco_dir, hold_out=0.5).items()} == {
        "train": 3,
        "validation": 3,
    }
    (coco_dir / "annotations" / "instances_train2017.json").unlink()
    assert list(load_detection_dataset(coco_dir)) == ["validation"]  # to evaluate on
    assert {k: len(v) for k, v in load_detection_dataset(coco_dir, hold_out=0.3).items()} == {
        "train": 2,
        "validation": 1,
    }
    path = coco_dir / "annotations" / "instances_val2017.json"
    write_coco(path, images=coco_content()["images"][:1], annotations=[])
    with pytest.raises(ValueError, match="1 image is not enough to train and to evaluate"):
        load_detection_dataset(coco_dir, hold_out=0.3)
    with pytest.raises(ValueError, match="hold_out must be a share between 0 and 1"):
        load_detection_dataset(coco_dir, hold_out=1)


def test_trainval_is_train_where_there_is_no_train(voc_dir):
    (voc_dir / "ImageSets/Main/train.txt").unlink()
    assert {k: len(v) for k, v in load_detection_dataset(voc_dir).items()} == {"train": 3, "validation": 1}


# ---- classes


@pytest.mark.parametrize("dummy", [{"name": "cat", "supercategory": "none"}, {"name": "pets", "supercategory": "none"}])
def test_the_first_category_of_roboflow_that_no_object_has_is_no_class(tmp_path, dummy):
    content = coco_content(ids=(1, 2))
    above = dummy["name"]
    content["categories"] = [{"id": 0, **dummy}, *({**one, "supercategory": above} for one in content["categories"])]
    for split in ("train", "valid", "test"):
        write_pictures(tmp_path / split)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    data = load_detection_dataset(tmp_path)
    assert (class_names(data), original_category_ids(data)) == (["cat", "dog"], [1, 2])
    assert boxes(data["validation"]) == SCENE_BOXES


@pytest.mark.parametrize("names", ["[yes, no]", "\n  0: yes\n  1: no", "\n- yes\n- no"])
@pytest.mark.parametrize("key", ["val", "valid"])
def test_names_of_yaml_stay_the_words_they_are(yolo_dir, names, key):
    text = f"train: ../train/images\n{key}: ../valid/images\nnc: 2\nnames: {names}\n"  # as Roboflow writes it
    for split, folder in (("train", "train"), ("val", "valid")):
        (yolo_dir / folder).mkdir()
        (yolo_dir / "images" / split).rename(yolo_dir / folder / "images")
        (yolo_dir / "labels" / split).rename(yolo_dir / folder / "labels")
    (yolo_dir / "data.yaml").write_text(text)
    data = load_detection_dataset(yolo_dir)
    assert class_names(data) == ["yes", "no"]
    assert list(data) == ["train", "validation"]
    assert boxes(data["validation"]) == SCENE_BOXES


def test_train_may_be_a_list_of_folders(yolo_dir):
    (yolo_dir / "data.yaml").write_text("train:\n- images/train\n- images/val\nnames: [cat, dog]\n")
    assert len(load_detection_dataset(yolo_dir)["train"]) == 6


def test_polygons_of_yolo_become_the_boxes_around_them(yolo_dir):
    (yolo_dir / "labels/train/a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.8\n0 0.25 0.2 0.5 0.2 0.5 0.4 0.25 0.4\n")
    objects = load_detection_dataset(yolo_dir)["train"][0]["objects"]
    assert [[round(v, 3) for v in box] for box in objects["bbox"]] == [[4, 6, 16, 18], [10, 6, 10, 6]]
    assert objects["area"] == pytest.approx([16 * 18 / 2, 60], rel=1e-5)
    text = (yolo_dir / "data.yaml").read_text()
    (yolo_dir / "data.yaml").write_text(f"{text}kpt_shape: [1, 2]\n")
    (yolo_dir / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.2 0.9 0.9\n")
    box = load_detection_dataset(yolo_dir)["train"][0]["objects"]["bbox"][0]
    assert box == pytest.approx([10, 12, 20, 6], abs=1e-3)


def test_names_as_categories_have_one_numbering_in_all_splits(tmp_path):
    path = str(write_picture(tmp_path / "a.png"))

    def rows(names, feature):
        features = Features(
            {"image": Image(), "objects": {"bbox": List(List(Value("float32"))), "category": List(feature)}}
        )
        objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]] * len(names), "category": names}
        return Dataset.from_dict({"image": [path], "objects": [objects]}, features=features)

    words = Value("string")
    data = load_detection_dataset({"train": rows(["a", "b"], words), "validation": rows(["a", "c"], words)})
    assert class_names(data) == ["a", "b", "c"]
    assert [split[0]["objects"]["category"] for split in data.values()] == [[0, 1], [0, 2]]
    alone = load_detection_dataset({"train": rows(["a", "b"], words), "test": rows(["c"], words)}, splits="test")
    assert alone["test"][0]["objects"]["category"] == [2]

    labels = {"train": ClassLabel(names=["b", "a"]), "validation": ClassLabel(names=["a", "b"])}
    with pytest.warns(UserWarning, match=r"number their classes differently; all are numbered as \['a', 'b'\]"):
        data = load_detection_dataset({split: rows(["a", "b"], label) for split, label in labels.items()})
    assert [split[0]["objects"]["category"] for split in data.values()] == [[0, 1], [0, 1]]


# ---- names, ids, encodings


def test_text_is_an_id_of_an_image_and_a_float_is_not(coco_dir):
    path = coco_dir / "annotations/instances_train2017.json"
    images = [{**one, "id": f"x{one['id']}"} for one in coco_content()["images"]]
    annotations = [
        {**one, "image_id": f"x{one['image_id']}", "id": f"n{one['id']}"} for one in coco_content()["annotations"]
    ]
    write_coco(path, images=images, annotations=annotations)
    data = load_detection_dataset(coco_dir)["train"]
    assert boxes(data) == SCENE_BOXES
    assert sorted(data["image_id"]) == [1, 2, 3]
    write_coco(path, annotations=[{**one, "image_id": str(one["image_id"])} for one in coco_content()["annotations"]])
    assert boxes(load_detection_dataset(coco_dir)["train"]) == SCENE_BOXES
    for number in (100.5, 100.0, 2**63, True):
        write_coco(path, images=[{**coco_content()["images"][0], "id": number}, *coco_content()["images"][1:]])
        with pytest.raises(
            ValueError, match=r"instances_train2017\.json: images\[0\]: expected a whole number of 64 bits"
        ):
            load_detection_dataset(coco_dir)


@pytest.mark.parametrize(
    "template",
    [
        "images\\{}", "images/%61/../{}", "http://localhost:8080/data/upload/1/{}", "/data/upload/1/{}",
        "/data/local-files/?d=some/folder/{}", "..\\..\\media\\upload\\{}", "C:\\Users\\me\\{}",
    ],
)  # fmt: skip
def test_paths_of_label_studio_are_found_by_base_name_and_one_line_says_so(tmp_path, template):
    write_pictures(tmp_path / "images")
    write_coco(tmp_path / "result.json", images=images_named(template))
    with pytest.warns(
        UserWarning, match=r"result\.json: 3 images are not where it says and were found by their base"
    ) as w:
        data = load_detection_dataset(tmp_path)
    assert len(w) == 1
    assert boxes(data["train"]) == SCENE_BOXES


def test_a_base_name_that_two_images_have_finds_none_of_them(tmp_path):
    for folder in ("one", "two"):
        write_pictures(tmp_path / "images" / folder)
    write_coco(tmp_path / "result.json", images=images_named("elsewhere/{}"))
    with pytest.raises(ValueError, match="no such image"):
        load_detection_dataset(tmp_path)
    write_coco(tmp_path / "result.json", images=images_named("elsewhere/two/{}"))
    with pytest.warns(UserWarning, match="found by their base name"):
        data = load_detection_dataset(tmp_path)["train"]
    assert all("/two/" in path for path in data.to_dict()["image"][0].values() if path)


def test_upper_case_suffixes_are_the_same_image(tmp_path):
    write_pictures(tmp_path / "images", suffix=".PNG")
    write_coco(tmp_path / "result.json")
    with pytest.warns(UserWarning, match="found by their base name"):
        assert boxes(load_detection_dataset(tmp_path)["train"]) == SCENE_BOXES


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_a_data_set_in_a_folder_below_is_found(voc_dir, tmp_path, below):
    (tmp_path / "outer" / below).parent.mkdir(parents=True)
    voc_dir.rename(tmp_path / "outer" / below)
    for format in ("auto", "voc"):
        assert list(load_detection_dataset(tmp_path / "outer", format)) == ["train", "validation", "trainval"]
    (tmp_path / "other").mkdir()
    label_img(tmp_path / "other")
    assert find_format(tmp_path / "outer") == "voc"
    (tmp_path / "outer" / "again").mkdir()
    label_studio_coco(tmp_path / "outer" / "again")
    if below == "VOC2012":
        with pytest.raises(ValueError, match="there are data sets in VOC2012, again; name one"):
            load_detection_dataset(tmp_path / "outer")


def coco_split(root):
    write_pictures(root / "images")
    write_coco(root / "annotations" / "annotations.json")


def fiftyone_split(root):
    write_pictures(root / "data")
    write_coco(root / "labels.json")


@pytest.mark.parametrize("write", [coco_split, fiftyone_split, kaggle_voc, label_img])
def test_each_split_may_have_a_folder_with_images_and_annotations(tmp_path, write):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write(tmp_path / split)
    data = load_detection_dataset(tmp_path)
    assert list(data) == ["train", "validation"]
    assert boxes(data["validation"]) == SCENE_BOXES
    assert all("/val/" in one["path"] for one in data["validation"].to_dict()["image"])


def text_files(root):
    return [path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml")]


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_byte_order_mark_is_no_part_of_the_text(request, format):
    root = request.getfixturevalue(f"{format}_dir")
    before = load_detection_dataset(root)
    for path in text_files(root):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    after = load_detection_dataset(root)
    assert class_names(after) == class_names(before)
    assert {k: boxes(v) for k, v in after.items()} == {k: boxes(v) for k, v in before.items()}


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_text_in_another_encoding_is_named_with_its_file(request, format):
    root = request.getfixturevalue(f"{format}_dir")
    path = next(
        path for path in text_files(root) if "instances_train" in path.name or path.name in ("a.xml", "data.yaml")
    )
    path.write_bytes(path.read_bytes().replace(b"cat", "chât".encode("latin-1")))
    with pytest.raises(ValueError, match=rf"{path.name}.*(not UTF-8 text \(byte 0xe2|not well-formed XML)"):
        load_detection_dataset(root, format)


def test_xml_may_have_a_default_namespace_and_say_true(voc_dir):
    xml = voc_xml("b", SCENES["b"]).replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    (voc_dir / "Annotations/b.xml").write_text(xml.replace("<difficult>0<", "<difficult>True<"))
    data = load_detection_dataset(voc_dir, voc_difficult="ignore")
    assert boxes(data["validation"]) == [SCENE_BOXES[1]]
    assert data["validation"][0]["objects"]["iscrowd"] == [1]


def test_annotations_of_another_kind_of_xml_are_refused_by_name(tmp_path):
    write_pictures(tmp_path / "images")
    (tmp_path / "annotations.xml").write_text("<annotations><image name='a.png'/></annotations>")
    with pytest.raises(ValueError, match=r"annotations\.xml: expected <annotation>, VOC's, got <annotations>; export"):
        load_detection_dataset(tmp_path)
