"""Thirty random damages of every format: no traceback, and what `check` passes, `train` can read to the end."""

import argparse
import contextlib
import json
import random
import shutil
import warnings
from xml.etree import ElementTree

import pytest
from datasets import disable_progress_bars

from hf_detr import DetectionTransform, DetrImageProcessor, shape_scenes, transform_dataset
from hf_detr.checkpoints.tiny import tiny_checkpoint
from hf_detr.cli import train
from hf_detr.cli._training import load_splits, print_report
from hf_detr.cli.main import main
from hf_detr.data.checks import check_dataset
from hf_detr.data.loading import load_detection_dataset
from hf_detr.evaluation import CocoEvaluator

from ..small_models import small_model
from .formats.test_mask_formats import voc_masks
from .mask_folders import write_coco_folder, write_panoptic_folder
from .tiny_data import SCENES, write_pictures

BAD = (None, "", "x", "no", "-1", -1, 0, 0.5, 1e999, float("nan"), -(2**63) - 1, 2**64, 10**400, True, [], {}, [None],
       [[]], "1e999", "nan", "\ud83d\ude00", {"id": 1}, [1, 2, 3, 4], "../../..", "0" * 40)  # fmt: skip


@pytest.fixture
def hub_dir(tmp_path):
    folder = tmp_path / "hub" / "train"
    write_pictures(folder)
    lines = []
    for stem, objects in SCENES.items():
        given = {"bbox": [list(box) for _, box in objects], "category": [name for name, _ in objects]}
        lines.append(json.dumps({"file_name": f"{stem}.png", "objects": given, "image_id": len(lines)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path / "hub"


@pytest.fixture
def panoptic_dir(tmp_path):
    return write_panoptic_folder(tmp_path / "panoptic", {"train": shape_scenes(3, 32, task="panoptic")})


@pytest.fixture
def coco_masks_dir(tmp_path):
    return write_coco_folder(tmp_path / "masks", {"train": shape_scenes(3, 32, task="instance")})


@pytest.fixture
def voc_masks_dir(tmp_path):
    voc_masks(tmp_path / "voc_masks")
    return tmp_path / "voc_masks"


@pytest.fixture
def saved_dir(coco_dir, tmp_path):
    load_detection_dataset(coco_dir).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def places(value, path=()):
    """The way to everything in a tree of dicts and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def change_json(text: str, rng: random.Random) -> str:
    content = json.loads(text)
    *path, last = rng.choice(list(places(content)))
    inner = content
    for key in path:
        inner = inner[key]
    if rng.random() < 0.3:
        del inner[last]
    else:
        inner[last] = rng.choice(BAD)
    return json.dumps(content)


def change_xml(text: str, rng: random.Random) -> str:
    root = ElementTree.fromstring(text)
    parent = rng.choice([element for element in root.iter() if len(element)])
    child = rng.choice(list(parent))
    if rng.random() < 0.3:
        parent.remove(child)
    else:
        child.text = str(rng.choice(BAD))
    return ElementTree.tostring(root, encoding="unicode")


def change_words(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    words = lines[number].split(" ")
    words[rng.randrange(len(words))] = str(rng.choice(BAD))
    lines[number] = " ".join(words)
    if rng.random() < 0.3:
        del lines[number]
    return "\n".join(lines)


CHANGES = {".json": change_json, ".xml": change_xml}


def damage(root, rng: random.Random) -> str:
    """Changes one file; returns what was done."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    texts = [
        path for path in files if path.suffix in (".json", ".jsonl", ".xml", ".txt", ".yaml") and path.stat().st_size
    ]
    path = rng.choice(texts if rng.random() < 0.8 else files)
    content = path.read_bytes()
    if path not in texts or rng.random() < 0.25:
        at = rng.randrange(len(content) + 1)
        path.write_bytes(content[:at] if rng.random() < 0.7 else content[:at] + rng.randbytes(3) + content[at + 3 :])
        return f"{path.name} cut or changed at byte {at}"
    if path.suffix == ".jsonl":
        lines = content.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = change_json(lines[number], rng)
        after = "\n".join(lines)
    else:
        after = CHANGES.get(path.suffix, change_words)(content.decode(), rng)
    path.write_text(after, encoding="utf-8", errors="surrogatepass")
    return f"{path.name} changed: {after[:2000]}"


def train_reads(root) -> bool:
    """Whether the data gets through everything of `hf-detr train` but the model: False where it is refused in words."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    words = [
        str(root),
        "--output",
        "none",
        "--model",
        str(tiny_checkpoint()),
        "--num-queries",
        "100",
        "--hold-out",
        "0.4",
    ]
    args = parser.parse_args(words)
    try:
        print_report(args, {})
        splits = load_splits(args, {})
    except (ValueError, OSError):
        return False
    transform = DetectionTransform(DetrImageProcessor(size={"height": 16, "width": 16}))
    names = splits.train.features["objects"]["category"].feature.names
    for rows in (splits.train, splits.validation, splits.test):
        items = list(transform_dataset(rows, transform))
        assert all(item["labels"]["boxes"].isfinite().all() for item in items)
        evaluator = CocoEvaluator(names)
        nothing = {"scores": [], "labels": [], "boxes": []}
        evaluator.update([nothing] * len(rows), list(rows.select_columns(["image_id", "objects"])))
        evaluator.compute()
    return True


@pytest.mark.parametrize("format", ["coco_masks", "voc_masks", "panoptic"])
def test_what_check_passes_of_masks_can_be_trained_on(request, tmp_path, monkeypatch, format):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    sound = request.getfixturevalue(f"{format}_dir")
    transform = DetectionTransform(DetrImageProcessor(size={"height": 16, "width": 16}), masks=True)
    passed = 0
    for seed in range(30):
        root = tmp_path / f"damaged{seed}"
        shutil.copytree(sound, root)
        done = damage(root, random.Random(f"masks {format} {seed}"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fine = False
            with contextlib.suppress(ValueError):
                fine = not check_dataset(root, masks=True).errors
            for rows in load_detection_dataset(root).values() if fine else ():
                items = list(transform_dataset(rows, transform))
                assert all(len(item["labels"]["masks"]) == len(item["labels"]["boxes"]) for item in items), done
        passed += fine
        shutil.rmtree(root)
    assert 0 < passed < 30


TRAIN = ["--backbone", "test_resnet", "--epochs", "1", "--workers", "0", "--device", "cpu", "--hold-out", "0.4"]


@pytest.fixture(scope="module")
def detector():
    """A model of the two classes, and its processor."""
    model = small_model(num_labels=2)
    model.config.id2label, model.config.label2id = {0: "cat", 1: "dog"}, {"cat": 0, "dog": 1}
    return model, DetrImageProcessor(size={"height": 16, "width": 16})


def codes_of_commands(root, is_sound: bool, done: str) -> dict[str, int]:
    """Exit codes of the commands that take the data; `train` where it refuses them."""
    output, model = str(root.with_suffix(".out")), tiny_checkpoint()
    codes = {"evaluate": main(["evaluate", model, str(root), "--device", "cpu"])}
    if not is_sound:
        codes["train"] = main(["train", str(root), "--output", output, *TRAIN])
    if done.split()[0].endswith(".png"):
        codes["predict"] = main(["predict", model, str(root), "--output", output + "put", "--device", "cpu"])
    return codes


@pytest.mark.parametrize("format", ["coco", "voc", "voc_masks", "yolo", "panoptic", "hub", "saved"])
def test_what_check_passes_train_reads_and_no_command_ends_in_a_traceback(
    request, tmp_path, monkeypatch, capsys, detector, format
):
    monkeypatch.setattr("hf_detr.cli._running.load_model", lambda *_: detector)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    disable_progress_bars()
    sound = request.getfixturevalue(f"{format}_dir")
    assert main(["check", str(sound)]) == 0
    passed = 0
    for seed in range(30):
        root = tmp_path / f"damaged{seed}"
        shutil.copytree(sound, root)
        done = damage(root, random.Random(f"{format} {seed}"))
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["check", str(root)])
            reads = train_reads(root)
            said = capsys.readouterr()
            codes = codes_of_commands(root, reads, done)
        assert code in (0, 1, 2), done
        assert codes["evaluate"] in (0, 2), done
        assert codes.get("train", 2) == 2, done
        assert codes.get("predict", 0) in (0, 1, 2), done
        assert reads == (code == 0), f"{done}\n{said.out}\n{said.err}"
        if code == 2:
            line = said.err.strip().splitlines()[-1]
            assert str(root) in line, f"{done}\n{said.err}"
            assert format in ("hub", "saved") or not any(
                word in line for word in ("NoneType", "not supported between", "object is not")
            ), line
        passed += reads
        shutil.rmtree(root)
    assert 0 < passed < 30  # else the damages were no test
