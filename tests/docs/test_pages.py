"""What the pages on data and fine-tuning show is what the package does."""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import disable_progress_bars

import hf_detr
from hf_detr.cli.main import _COMMANDS

from .pages import ROOT, blocks, commands, links

PAGES = ("data.md", "fine-tuning.md", "inference.md")


@pytest.fixture(scope="module")
def data_page(tmp_path_factory):
    """The names that the blocks of data.md leave, but for the one on Albumentations, run in order in a folder."""
    disable_progress_bars()
    folder, names = tmp_path_factory.mktemp("data"), {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for block in blocks("data.md", "python"):
            if "albumentations" not in block:
                exec(block, names)
    return folder, names


@pytest.fixture
def in_data_folder(data_page, monkeypatch):
    """Where `scenes` is; one thread, since the nets are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(data_page[0])
    yield dict(data_page[1])
    torch.set_num_threads(before)


def test_the_data_page_runs(data_page):
    folder, names = data_page
    assert (folder / "scenes").is_dir()
    assert names["report"].num_queries == 20
    assert names["batch"]["pixel_values"].shape[0] == 4


def test_an_augmentation_of_ones_own_moves_picture_and_boxes_together(in_data_folder):
    row = in_data_folder["data"]["train"][0]
    turned = in_data_folder["upside_down"](row)
    for (x, y, w, h), (left, top, width, height) in zip(row["objects"]["bbox"], turned["objects"]["bbox"], strict=True):
        before = row["image"].crop((x, y, x + w, y + h))
        after = turned["image"].crop((left, top, left + width, top + height))
        assert before.transpose(1).tobytes() == after.tobytes()  # 1: top to bottom


def test_the_albumentations_adapter_keeps_boxes_on_their_objects_and_follows_the_seed(in_data_folder):
    A = pytest.importorskip("albumentations", reason="Albumentations is not installed: pip install albumentations")
    names = in_data_folder
    [block] = [block for block in blocks("data.md", "python") if "albumentations" in block]
    exec(block, names)
    adapter, rows = names["Albumentations"], names["data"]["train"]

    mirror = adapter(A.HorizontalFlip(p=1.0))
    for row in list(rows)[:8]:
        mirrored = mirror(row)
        assert mirrored["objects"]["category"] == row["objects"]["category"]
        for (x, y, w, h), box in zip(row["objects"]["bbox"], mirrored["objects"]["bbox"], strict=True):
            assert box == pytest.approx([row["width"] - x - w, y, w, h], abs=1e-3)
    crop = adapter(A.RandomCrop(height=40, width=30, p=1.0))
    kept = [crop(row) for row in rows]
    assert any(len(new["objects"]["bbox"]) < len(row["objects"]["bbox"]) for new, row in zip(kept, rows, strict=True))
    for new in kept:
        assert (new["width"], new["height"]) == new["image"].size == (30, 40)
        assert len({len(values) for values in new["objects"].values()}) == 1
        for x, y, w, h in new["objects"]["bbox"]:
            assert -1e-3 <= x <= x + w <= 30 + 1e-3
            assert -1e-3 <= y <= y + h <= 40 + 1e-3
    nothing = {**rows[0], "objects": {name: [] for name in rows[0]["objects"]}}
    assert crop(nothing)["objects"]["bbox"] == []

    images = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        images.append([names["augment"](row)["image"].tobytes() for row in rows])
    assert images[0] == images[1] != images[2]


@pytest.mark.parametrize(
    "block", blocks("fine-tuning.md", "python"), ids=["trainer", "transfer", "teacher", "pipeline"]
)
def test_the_fine_tuning_page_runs(block, in_data_folder):
    if "DetrTrainer(" in block:  # once is enough, and the pictures are small
        block = block.replace("num_train_epochs=2", "num_train_epochs=1, dataloader_num_workers=0, use_cpu=True")
    names: dict = {}
    exec(block, names)
    if "trainer" in names:
        assert names["trainer"].state.global_step == 12
        assert Path("runs/trainer/model.safetensors").exists()
    elif "teacher" in names:
        assert names["found"].rows.features == names["train"].features
    elif "detect" in names:
        assert names["detect"].model.config.num_queries == 12
    else:
        assert names["model"].config.num_queries == 20
        assert names["model"].config.id2label == {0: "square", 1: "star", 2: "seven"}
        assert names["model"].config.auxiliary_loss


def test_the_inference_page_runs(in_data_folder):
    names: dict = {}
    for block in blocks("inference.md", "python"):
        exec(block, names)
    assert Path("found.png").exists()
    assert len(names["tiles"]) > 1
    assert set(names["found"]) == {"scores", "labels", "boxes"}


def test_the_page_on_seeing_inside_runs(in_data_folder):
    names: dict = {}
    [block] = blocks("explain.md", "python")
    exec(block, names)
    assert names["attention"].shape == names["image"].size[::-1]
    assert "a scene" in names["page"]
    for words in commands("explain.md")[1:]:
        assert _parsed_by_hf_detr(words[1:]).image


def _parsed_by_hf_detr(words: list[str]) -> argparse.Namespace:
    assert words[0] in _COMMANDS, words
    parser = argparse.ArgumentParser()
    importlib.import_module(f"hf_detr.cli.{words[0]}").add_arguments(parser)
    return parser.parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_has_arguments_that_exist(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = 0
    for words in commands(page):
        words = [hf_detr.tiny_checkpoint() if word == "$TINY" else word for word in words]
        launched = [word for word in words if word in ("hf-detr", "hf_detr.cli.main") or word.startswith("examples/")]
        if not launched:
            assert words[0].startswith("TINY=") or words[-1] == "train.py", words
            continue
        more = words[words.index(launched[0]) + 1 :]
        if launched[0].startswith("examples/"):
            assert (ROOT / launched[0]).is_file(), words
        if launched[0] in ("hf-detr", "hf_detr.cli.main"):
            _parsed_by_hf_detr(more)
        elif launched[0] == "examples/train_accelerate.py":
            more = [word for word in more if word != "--resume"]  # asks for a run
            monkeypatch.setattr(sys, "argv", [launched[0], *more])
            runpy.run_path(str(ROOT / launched[0]))["parse_arguments"]()
        shown += 1
    assert shown >= 5


@pytest.mark.parametrize("page", PAGES)
def test_every_file_linked_to_exists(page):
    assert links(page)
    for target in links(page):
        assert (ROOT / "docs" / target).exists(), target
