"""Tiny data sets as folders of every format."""

import json
from pathlib import Path

import pytest
from datasets import disable_progress_bars

from .tiny_data import SCENES, coco_content, voc_xml, write_pictures

disable_progress_bars()


@pytest.fixture
def coco_dir(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for index, split in enumerate(("train2017", "val2017")):
        write_pictures(root / split, 100 * index)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_content()))
    (root / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return root


@pytest.fixture
def voc_dir(tmp_path):
    root = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    write_pictures(root / "JPEGImages")
    for stem, objects in SCENES.items():
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, objects))
    (root / "ImageSets/Main/train.txt").write_text("a\nempty\n")
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    (root / "ImageSets/Main/trainval.txt").write_text("a\nb\nempty\n")
    (root / "ImageSets/Main/cat_train.txt").write_text("a  1\nempty -1\n")
    return root


@pytest.fixture
def yolo_dir(tmp_path):
    root = tmp_path / "yolo"
    for index, split in enumerate(("train", "val")):
        write_pictures(root / "images" / split, 100 * index)
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for stem, objects in SCENES.items():
            lines = []
            for name, (x, y, w, h) in objects:
                values = ((x + w / 2) / 40, (y + h / 2) / 30, w / 40, h / 30)
                lines.append(" ".join([str(("cat", "dog").index(name)), *(f"{value:.6f}" for value in values)]))
            if lines:
                (labels / f"{stem}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


@pytest.fixture(scope="session")
def bccd():
    root = Path(__file__).resolve().parents[2] / "../shared/data/bccd"
    if not root.is_dir():
        pytest.skip("the BCCD photographs are not beside the repository (../shared/data/bccd)")
    return root.resolve()
