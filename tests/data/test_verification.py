"""Images that cannot be used are found before training, by one function, once."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from PIL import Image

from hf_detr import DetrImageProcessor
from hf_detr.data import verification
from hf_detr.data.augmentation import paper_augmentation
from hf_detr.data.checks import check_dataset
from hf_detr.data.contact_sheet import draw_contact_sheet
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.transform import DetectionTransform, decode_image
from hf_detr.data.verification import cache_folder, drop_bad_images

from .tiny_data import write_picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def opened(monkeypatch):
    """The images that are read, as they are."""
    opened = []
    original = verification.load_image
    monkeypatch.setattr(verification, "load_image", lambda *args, **kw: opened.append(args) or original(*args, **kw))
    return opened


def spoil(coco_dir):
    """One image truncated, one missing, one of another size, of the three of train."""
    train = coco_dir / "train2017"
    (train / "a.png").write_bytes((train / "a.png").read_bytes()[:-30])
    (train / "b.png").unlink()
    write_picture(train / "empty.png", 9, (30, 30))


def test_bad_images_are_left_out_and_counted_everywhere(coco_dir):
    spoil(coco_dir)
    write_picture(coco_dir / "train2017" / "b.png")
    message = "split 'train': 2 images dropped .*on_bad_image='drop'; the first: image_id 100 .*a.png"
    with pytest.warns(UserWarning, match=message):
        data = load_detection_dataset(coco_dir, on_bad_image="drop")
    assert {split: list(rows["image_id"]) for split, rows in data.items()} == {
        "train": [101],
        "validation": [100, 101, 102],
    }
    assert "2 images dropped" in data["train"].info.description
    report = check_dataset(coco_dir, on_bad_image="drop")
    assert report.errors == []
    assert {one.kind for one in report.warnings} >= {"corrupt image", "size differs"}

    rows = load_detection_dataset(coco_dir, on_bad_image="error")["train"]
    with pytest.warns(UserWarning, match="2 images dropped"):
        again = load_detection_dataset(rows, on_bad_image="drop")["train"]
    assert list(again["image_id"]) == [101]
    stream = load_detection_dataset(rows.to_iterable_dataset(), on_bad_image="drop")["train"]
    assert isinstance(stream, IterableDataset)
    assert [row["image_id"] for row in stream] == [101]
    transformed = rows.with_transform(DetectionTransform(DetrImageProcessor(size={"height": 32, "width": 32})))
    with pytest.warns(UserWarning, match="2 images dropped"):
        kept = drop_bad_images(transformed, "train_dataset")
    assert [int(item["labels"]["image_id"]) for item in kept] == [101]
    assert drop_bad_images([1, 2], "other") == [1, 2]


def test_a_missing_image_is_dropped_too(coco_dir):
    spoil(coco_dir)
    with pytest.raises(ValueError, match="no such image"):
        load_detection_dataset(coco_dir)
    with pytest.warns(UserWarning, match="3 images dropped"):
        data = load_detection_dataset(coco_dir, on_bad_image="drop")
    assert len(data["train"]) == 0
    with pytest.raises(ValueError, match="on_bad_image must be one of"):
        load_detection_dataset(coco_dir, on_bad_image="skip")


def test_a_good_image_is_read_once_until_its_file_changes(coco_dir, opened):
    check_dataset(coco_dir)
    assert len(opened) == 6
    report = check_dataset(coco_dir)
    assert len(opened) == 6
    assert report.problems == []  # what was remembered serves to compare images, too
    write_picture(coco_dir / "train2017/a.png", 200)
    load_detection_dataset(coco_dir, on_bad_image="drop")
    assert len(opened) == 7
    (coco_dir / "train2017/a.png").write_bytes(b"no image")
    for _ in range(2):
        assert [one.kind for one in check_dataset(coco_dir).errors] == ["corrupt image"]


@pytest.mark.parametrize("content", [b"no database at all", b"SQLite format 3\0" + bytes(500), b""])
def test_a_damaged_cache_is_made_anew(coco_dir, opened, content):
    path = cache_folder() / "verified_images.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert check_dataset(coco_dir).problems == []
    assert check_dataset(coco_dir).problems == []
    assert len(opened) == 6


def test_a_cache_that_cannot_be_written_costs_the_memory_alone(coco_dir, opened, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    for number in (6, 12):
        assert check_dataset(coco_dir).problems == []
        assert len(opened) == number


def test_two_processes_share_the_cache(coco_dir, opened):
    code = (
        "import sys; from hf_detr.data.checks import check_dataset; sys.exit(len(check_dataset(sys.argv[1]).problems))"
    )
    command = [sys.executable, "-c", code, str(coco_dir)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True), range(2)))
    assert [one.returncode for one in done] == [0, 0], done
    assert check_dataset(coco_dir).problems == []
    assert opened == []
    with sqlite3.connect(cache_folder() / "verified_images.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM images").fetchone() == (6,)


WIDE = {
    "I;16": np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16),
    "I": np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.int32),
    "F": np.linspace(0, 1, 1200).reshape(30, 40).astype(np.float32),
}


@pytest.mark.parametrize("mode", WIDE)
def test_wide_grey_images_have_one_scaling_in_loading_augmentation_sheet_and_drawing(tmp_path, mode):
    from hf_detr.visualization import draw_detections

    Image.fromarray(WIDE[mode]).save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == mode
    wanted = np.linspace(0, 255, 1200).reshape(30, 40)
    objects = {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
    row = {"image": {"path": str(tmp_path / "a.tif"), "bytes": None}, "image_id": 1, "width": 40, "height": 30}
    row["objects"] = objects
    processor = DetrImageProcessor(do_resize=False, do_normalize=False, size={"height": 30, "width": 40})
    direct = processor(images=str(tmp_path / "a.tif"), return_tensors="np")["pixel_values"][0] * 255
    pil = processor(images=Image.open(tmp_path / "a.tif"), return_tensors="np")["pixel_values"][0] * 255
    augment = paper_augmentation(30, 40, flip_probability=0.0)
    augment._scales = augment._scales_before_crop = [30]
    augment._crop_sides = [100, 100]
    augmented = np.asarray(augment({**row, "image": Image.open(tmp_path / "a.tif")})["image"].convert("L"))
    drawn = draw_detections(Image.open(tmp_path / "a.tif"), {"scores": [], "labels": [], "boxes": []}, {0: "x"})
    for image in (direct[0], pil[2], augmented, np.asarray(decode_image(dict(row)))):
        np.testing.assert_allclose(image, wanted, atol=0.51)
    np.testing.assert_allclose(np.asarray(drawn.resize((40, 30)))[3:-3, 3:-3, 1], wanted[3:-3, 3:-3], atol=4)


@pytest.mark.parametrize("values", [[[0, 70000]], [[-1, 3]], [[0.0, np.nan]], [[0.0, np.inf]]])
def test_values_that_no_scaling_fits_are_found_by_check_and_refused_by_training(tmp_path, values):
    values = np.array(values)
    content = BytesIO()
    Image.fromarray(values.astype(np.float32 if values.dtype == float else np.int32)).save(content, "TIFF")
    row = {"image": {"path": None, "bytes": content.getvalue()}, "image_id": 1, "width": 2, "height": 1,
           "objects": {"id": [1], "bbox": [[0, 0, 1, 1]], "category": [0], "area": [1], "iscrowd": [0]}}  # fmt: skip
    from hf_detr.data.schema import detection_features

    data = Dataset.from_list([row], features=detection_features(["cat"]))
    assert "corrupt image" in {one.kind for one in check_dataset(data).errors}
    with pytest.raises(ValueError, match="image_id 1"):
        decode_image(row)


def test_a_contact_sheet_shows_16_bits_as_they_look(coco_dir, tmp_path):
    Image.fromarray(np.full((30, 40), 128 * 257, dtype=np.uint16)).save(coco_dir / "train2017/empty.png")
    rows = load_detection_dataset(coco_dir)["train"].select([2])
    sheet = np.asarray(Image.open(draw_contact_sheet(rows, tmp_path / "sheet.png")))
    assert tuple(sheet[150, 150]) == (128, 128, 128)
