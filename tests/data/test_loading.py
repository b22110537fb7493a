"""Finding the format, the formats that `datasets` itself reads, and streaming."""

import json
import pickle
import tarfile
from io import BytesIO

import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
    List,
    Value,
    load_dataset,
)

from hf_detr.data.loading import find_format, load_detection_dataset
from hf_detr.data.schema import class_names, is_detection_dataset, original_category_ids
from hf_detr.data.synthetic.digits import digit_scenes

from .tiny_data import SCENES, write_picture, write_pictures


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def hub_like(folder, **columns) -> Dataset:
    """Two pictures as a Hub data set may have them: other names, no sizes, a string column besides."""
    paths = [str(write_picture(folder / f"{index}.png", 50 * index)) for index in range(2)]
    objects = [
        {"bbox": [[4.0, 6.0, 10.0, 12.0]], "label": ["dog"]},
        {"bbox": [[0.0, 0.0, 40.0, 30.0], [1.0, 1.0, 5.0, 5.0]], "label": ["cat", "dog"]},
    ]
    features = Features(
        {
            "image": Image(),
            "note": Value("string"),
            "objects": {"bbox": List(List(Value("float32"))), "label": List(Value("string"))},
        }
    )
    return Dataset.from_dict({"image": paths, "note": ["x", "y"], "objects": objects, **columns}, features=features)


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_each_format_is_recognised_and_has_one_schema(request, format):
    root = request.getfixturevalue(f"{format}_dir")
    assert find_format(root) == format
    dataset = load_detection_dataset(str(root))
    assert isinstance(dataset, DatasetDict)
    assert all(is_detection_dataset(split) for split in dataset.values())
    assert sum(len(one["bbox"]) for split in ("train", "validation") for one in dataset[split]["objects"]) >= 3
    # pictures are references until used
    assert all(one["bytes"] is None and one["path"] for one in dataset["train"].to_dict()["image"])


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_streamed_rows_are_the_rows(request, format):
    root = request.getfixturevalue(f"{format}_dir")
    plain, streamed = load_detection_dataset(root), load_detection_dataset(root, streaming=True)
    assert isinstance(streamed, IterableDatasetDict)
    assert class_names(streamed) == class_names(plain)
    for split in plain:
        rows = list(streamed[split])
        assert [row["image"].size for row in rows] == [(40, 30)] * len(plain[split])
        for row, wanted in zip(rows, plain[split], strict=True):
            for name in ("image_id", "width", "height"):
                assert row[name] == wanted[name]
            assert row["objects"]["category"] == wanted["objects"]["category"]
            assert [list(box) for box in row["objects"]["bbox"]] == [
                pytest.approx(box, rel=1e-6) for box in wanted["objects"]["bbox"]
            ]


def test_what_was_saved_comes_back_the_same(coco_dir, tmp_path):
    dataset = load_detection_dataset(coco_dir)
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split, rows in dataset.items():
        rows.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    for folder, format in (("saved", "saved"), ("parquet", "hub")):
        assert find_format(tmp_path / folder) == format
        for streaming in (False, True):
            again = load_detection_dataset(tmp_path / folder, streaming=streaming)
            assert original_category_ids(again) == [3, 7]
            rows = list(again["validation"])
            assert rows[0]["objects"] == dataset["validation"][0]["objects"]
            assert rows[0]["image"].size == (40, 30)
            assert [row["image_id"] for row in rows] == [100, 101, 102]


def test_encoded_pictures_stay_encoded_in_parquet(tmp_path):
    scenes = digit_scenes(2, image_size=32)
    (tmp_path / "parquet").mkdir()
    scenes.to_parquet(tmp_path / "parquet" / "train.parquet")
    again = load_detection_dataset(tmp_path / "parquet")["train"]
    assert again.to_dict() == scenes.to_dict()


def test_one_saved_split_is_train(tmp_path):
    digit_scenes(2, image_size=32).save_to_disk(tmp_path / "one")
    assert list(load_detection_dataset(tmp_path / "one")) == ["train"]


def test_an_image_folder_with_metadata_is_read_through_datasets(tmp_path):
    folder = tmp_path / "folder" / "train"
    write_pictures(folder)
    lines = [
        {
            "file_name": f"{stem}.png",
            "objects": {
                "bbox": [list(box) for _, box in objects],
                "categories": [name == "dog" for name, _ in objects],
            },
        }
        for stem, objects in SCENES.items()
    ]
    for line in lines:
        line["objects"]["categories"] = [int(one) for one in line["objects"]["categories"]]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(ValueError, match=r"objects\.categories is .*int64.*pass class_names"):
        load_detection_dataset(tmp_path / "folder")
    dataset = load_detection_dataset(tmp_path / "folder", class_names=["cat", "dog"])["train"]
    assert is_detection_dataset(dataset)
    rows = {len(row["objects"]["bbox"]): row for row in dataset}
    assert rows[2]["objects"]["bbox"] == [list(box) for _, box in SCENES["a"]]
    assert rows[2]["objects"]["category"] == [0, 1]
    assert (rows[0]["width"], rows[0]["height"]) == (40, 30)
    assert sorted(row["image_id"] for row in dataset) == [0, 1, 2]


def test_other_column_names_names_as_classes_and_missing_columns_are_understood(tmp_path):
    for source in (hub_like(tmp_path), {"val": hub_like(tmp_path)}):
        (split, dataset), *_ = load_detection_dataset(source).items()
        assert split == ("validation" if isinstance(source, dict) else "train")
        assert is_detection_dataset(dataset)
        assert class_names(dataset) == ["cat", "dog"]
        assert [row["image_id"] for row in dataset] == [0, 1]
        assert dataset[1]["objects"] == {
            "id": [2, 3],
            "bbox": [[0, 0, 40, 30], [1, 1, 5, 5]],
            "category": [0, 1],
            "area": [1200, 25],
            "iscrowd": [0, 0],
        }
        assert dataset[1]["image"].size == (dataset[1]["width"], dataset[1]["height"]) == (40, 30)


def test_a_stream_of_other_names_is_understood_row_by_row(tmp_path):
    stream = hub_like(tmp_path).to_iterable_dataset()
    with pytest.raises(ValueError, match="pass class_names"):
        load_detection_dataset(stream)
    dataset = load_detection_dataset(stream, class_names=["cat", "dog"])["train"]
    assert class_names(dataset) == ["cat", "dog"]
    rows = list(dataset)
    assert rows[1]["objects"]["category"] == [0, 1]
    assert rows[1]["image"].size == (40, 30)
    assert set(rows[0]) == {"image", "image_id", "width", "height", "objects"}


def test_objects_as_a_list_of_dicts_are_understood(tmp_path):
    path = str(write_picture(tmp_path / "a.png"))
    one = {"bbox": List(Value("float32"), length=4), "category": ClassLabel(names=["cat"])}
    dataset = Dataset.from_dict(
        {"image": [path, path], "objects": [[{"bbox": [1, 2, 3, 4], "category": 0}], []]},
        features=Features({"image": Image(), "objects": List(one)}),
    )
    rows = load_detection_dataset(dataset)["train"]
    assert [row["objects"]["bbox"] for row in rows] == [[[1, 2, 3, 4]], []]


def test_bad_boxes_of_a_datasets_object_are_named_by_row(tmp_path):
    dataset = hub_like(tmp_path)
    dataset = dataset.map(
        lambda row, i: {"objects": {**row["objects"], "bbox": [[0, 0, 0, 5]] * (i + 1)}}, with_indices=True
    )
    with pytest.raises(ValueError, match=r"split 'train', row 0 \(image_id 0\), object 0: box \[0, 0, 0, 5\].*no area"):
        load_detection_dataset(dataset)
    with pytest.warns(UserWarning, match=r"of 3 boxes 3 dropped \(no area: 3\)"):
        rows = load_detection_dataset(dataset, on_bad_box="drop")["train"]
    assert [row["objects"]["id"] for row in rows] == [[], []]
    streamed = load_detection_dataset(dataset.to_iterable_dataset(), on_bad_box="drop", class_names=["cat", "dog"])[
        "train"
    ]
    with pytest.warns(UserWarning, match="so far: .*1 dropped"):
        assert len(list(streamed)) == 2


def test_a_selection_of_rows_keeps_pictures_and_boxes_together():
    scenes = digit_scenes(6, image_size=32).select([4, 1]).rename_column("image_id", "number")
    rows = load_detection_dataset(scenes)["train"]
    for row, wanted in zip(rows, scenes, strict=True):
        assert row["objects"]["bbox"] == wanted["objects"]["bbox"]
        assert row["image"].tobytes() == wanted["image"].tobytes()


def test_loaded_splits_can_be_pickled_and_chosen(coco_dir):
    dataset = pickle.loads(pickle.dumps(load_detection_dataset(coco_dir, splits=["validation"])))
    assert list(dataset) == ["validation"]
    with pytest.raises(ValueError, match=r"no split \['test'\]; it has \['train', 'validation'\]"):
        load_detection_dataset(coco_dir, splits="test")


def test_nothing_found_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"Looked for .*data\.yaml.*Annotations.*parquet.*found \['notes\.txt'\]"):
        load_detection_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_detection_dataset(tmp_path / "absent")


def test_two_formats_in_one_folder_ask_which(coco_dir):
    (coco_dir / "data.yaml").write_text("train: train2017\nnames: [cat, dog]\n")
    with pytest.raises(ValueError, match=r"looks like yolo and like coco; say which"):
        load_detection_dataset(coco_dir)
    assert len(load_detection_dataset(coco_dir, format="coco")) == 2


def test_a_name_that_is_neither_here_nor_on_the_hub_says_both(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("hf_detr.data.loading.load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match=r"some/name: .*here, and as a data set of the Hub .*no network"):
        load_detection_dataset("some/name")


def test_a_hub_name_goes_to_load_dataset_with_its_options(monkeypatch, tmp_path):
    asked = {}

    def fake(name, **options):
        asked.update(options, name=name)
        return DatasetDict(val=hub_like(tmp_path))

    monkeypatch.setattr("hf_detr.data.loading.load_dataset", fake)
    dataset = load_detection_dataset("someone/cats", hub_options={"revision": "v2"})
    assert asked == {"name": "someone/cats", "revision": "v2", "streaming": False}
    assert class_names(dataset["validation"]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "format must be one of"),
        ({"on_bad_box": "ignore"}, "on_bad_box must be one of"),
        ({"bbox_format": "xyzw"}, "bbox_format must be one of"),
        (
            {"class_names": ["cat"]},
            "class_names is for voc and voc_masks and hub and saved sources, but .* is read as coco",
        ),
        ({"voc_first_pixel": 0}, "voc_first_pixel is for voc sources"),
    ],
)
def test_options_without_a_meaning_are_refused(coco_dir, options, message):
    with pytest.raises(ValueError, match=message):
        load_detection_dataset(coco_dir, **options)


def test_a_data_set_without_boxes_says_what_it_needs(tmp_path):
    write_picture(tmp_path / "cats" / "a.png")
    dataset = load_dataset("imagefolder", data_dir=str(tmp_path / "cats"), split="train")
    with pytest.raises(ValueError, match="'objects' with 'bbox' and 'category'"):
        load_detection_dataset(dataset)
    with pytest.raises(TypeError, match="source must be"):
        load_detection_dataset(42)


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_shards_of_webdataset_are_read(tmp_path, streaming):
    number = 0
    for shard in range(2):
        for split, count in (("train", 3), ("val", 1)):
            with tarfile.open(tmp_path / f"{split}-{shard:04d}.tar", "w") as tar:
                for _ in range(count):
                    number += 1
                    objects = {"bbox": [[1, 2, 3, 4.5]], "category": ["cat"]}
                    given = json.dumps({"objects": objects, "image_id": number}).encode()
                    picture = write_picture(tmp_path / "picture" / "one.png", number).read_bytes()
                    for name, content in ((f"{number:03}.png", picture), (f"{number:03}.json", given)):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, BytesIO(content))
    assert find_format(tmp_path) == "hub"
    options = {"class_names": ["cat"]} if streaming else {}  # a stream is not read to find the names
    data = load_detection_dataset(tmp_path, streaming=streaming, **options)
    assert class_names(data) == ["cat"]
    rows = {split: list(one) for split, one in data.items()}
    assert {split: len(many) for split, many in rows.items()} == {"train": 6, "validation": 2}
    assert sorted(row["image_id"] for many in rows.values() for row in many) == list(range(1, 9))
    for row in rows["train"]:
        assert row["objects"]["bbox"] == [[1, 2, 3, 4.5]]
        assert row["image"].size == (row["width"], row["height"]) == (40, 30)
        assert row["image"].getpixel((0, 0))[0] == row["image_id"]
