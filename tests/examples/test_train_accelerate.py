"""examples/train_accelerate.py, run as its reader runs it."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.digits import digit_scenes

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_accelerate.py"
LOSSES = ("loss", "loss_ce", "loss_bbox", "loss_giou")
SMALL_MODEL = (
    "--backbone test_resnet --d-model 32 --heads 4 --ffn-dim 32 --encoder-layers 1 --decoder-layers 2 --queries 8 "
    "--shortest-edge 64"
)


def arguments(output: Path, *more: object, model: str = SMALL_MODEL) -> list[str]:
    return [*model.split(), "--workers", "0", "--output", str(output), *map(str, more)]


def run_script(output: Path, *more: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(SCRIPT), *arguments(output, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


def run_here(monkeypatch, output: Path, *more: object, model: str = SMALL_MODEL) -> None:
    """What `python SCRIPT ...` does, without a new Python to wait for."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments(output, *more, model=model)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def history(output: Path) -> list[dict]:
    return json.loads((output / "history.json").read_text())


def assert_same_losses(one: list[dict], other: list[dict], tolerance: float) -> None:
    assert [entry["epoch"] for entry in one] == [entry["epoch"] for entry in other]
    for name in LOSSES:
        np.testing.assert_allclose([e[name] for e in one], [e[name] for e in other], rtol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory) -> Path:
    """Six pictures of 80 x 60 with a bright rectangle each, four to train on."""
    root = tmp_path_factory.mktemp("voc")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        left, top = (int(value) for value in generator.integers(0, 30, 2))
        pixels = generator.integers(0, 60, (60, 80, 3), dtype=np.uint8)
        pixels[top : top + 25, left : left + 35] = 220
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.jpg")
        xml = ElementTree.Element("annotation")
        ElementTree.SubElement(xml, "filename").text = f"{number}.jpg"
        size, found = ElementTree.SubElement(xml, "size"), ElementTree.SubElement(xml, "object")
        for name, value in (("width", 80), ("height", 60), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        ElementTree.SubElement(found, "name").text = "lamp" if number % 2 else "door"
        box = ElementTree.SubElement(found, "bndbox")
        corners = {"xmin": left + 1, "ymin": top + 1, "xmax": left + 35, "ymax": top + 25}
        for name, value in corners.items():
            ElementTree.SubElement(box, name).text = str(value)
        ElementTree.ElementTree(xml).write(root / "Annotations" / f"{number}.xml")
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
    (root / "ImageSets/Main/val.txt").write_text("4\n5\n")
    return root


def test_a_voc_folder_becomes_a_detector_that_loads(voc_folder, tmp_path):
    output = tmp_path / "run"
    done = run_script(output, "--voc", voc_folder, "--epochs", 1, "--live-norms")
    assert done.returncode == 0, done.stderr
    assert "4 images to train on, 2 to evaluate on" in done.stdout
    model = DetrForObjectDetection.from_pretrained(output / "best")
    processor = DetrImageProcessor.from_pretrained(output / "best")
    assert model.config.id2label == {0: "door", 1: "lamp"}
    assert processor.size == {"shortest_edge": 64, "longest_edge": 107}
    image = Image.open(voc_folder / "JPEGImages" / "0.jpg")
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    assert outputs.logits.shape == (1, 8, 3)
    [entry] = history(output)
    assert all(np.isfinite(entry[name]) and entry[name] > 0 for name in LOSSES)
    assert entry["eval_num_images"] == 2
    assert (output / "curves.png").stat().st_size > 0


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(tmp_path, monkeypatch):
    # dropout, augmentation, shuffling, accumulation and a drop of the learning rate: all that has a state
    recipe = ("--digits", 5, "--batch-size", 1, "--gradient-accumulation", 2, "--lr-drop", 2, "--live-norms")
    run_here(monkeypatch, tmp_path / "whole", *recipe, "--epochs", 3)
    run_here(monkeypatch, tmp_path / "halves", *recipe, "--epochs", 1)
    done = run_script(tmp_path / "halves", *recipe, "--epochs", 3, "--resume")
    assert done.returncode == 0, done.stderr
    whole, halves = history(tmp_path / "whole"), history(tmp_path / "halves")
    assert_same_losses(whole, halves, 1e-6)
    assert whole[0]["loss"] != whole[1]["loss"]
    assert [entry["learning_rate"] for entry in halves] == [pytest.approx(rate) for rate in (1e-4, 1e-4, 1e-5)]
    one, other = (
        DetrForObjectDetection.from_pretrained(tmp_path / name / "best").state_dict() for name in ("whole", "halves")
    )
    assert all(torch.allclose(tensor, other[name], rtol=1e-6, atol=1e-7) for name, tensor in one.items())


BIG_BATCH = ("--digits", 8, "--epochs", 2, "--dropout", 0, "--augment", "none", "--learning-rate", 1e-3)


@pytest.fixture(scope="module")
def big_batch_history(tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("big")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_here(monkeypatch, output / "run", *BIG_BATCH, "--batch-size", 4)
    return history(output / "run")


def test_accumulated_passes_have_the_losses_of_one_big_batch(tmp_path, monkeypatch, big_batch_history):
    run_here(monkeypatch, tmp_path / "run", *BIG_BATCH, "--batch-size", 1, "--gradient-accumulation", 4)
    assert_same_losses(history(tmp_path / "run"), big_batch_history, 1e-4)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "batch_size", "accumulation"),
    [
        # what `accelerate launch` and `torchrun` run; accelerate's own --cpu starts one process only, without MPI
        (("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"), 2, 1),
        (("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"), 1, 2),
    ],
)
def test_two_processes_have_the_losses_of_one_big_batch(
    tmp_path, big_batch_history, launcher, batch_size, accumulation
):
    batch = ("--batch-size", batch_size, "--gradient-accumulation", accumulation)
    done = run_script(tmp_path / "run", *BIG_BATCH, *batch, launcher=(*launcher, free_port()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images to train on") == 1  # one process speaks
    found = history(tmp_path / "run")
    assert_same_losses(found, big_batch_history, 1e-4)
    assert [entry["eval_num_images"] for entry in found] == [2, 2]
    assert [entry["eval_num_duplicates"] for entry in found] == [0, 0]


def test_a_saved_dataset_and_a_checkpoint_start_a_run_for_new_classes(voc_folder, tmp_path, monkeypatch):
    run_here(monkeypatch, tmp_path / "voc", "--voc", voc_folder, "--epochs", 1)
    rows = digit_scenes(3, digits=(3, 5, 7))
    rows.save_to_disk(tmp_path / "rows")
    source = ("--dataset", tmp_path / "rows", "--evaluate-on", "train", "--limit", 2, "--epochs", 1)
    run_here(monkeypatch, tmp_path / "run", *source, "--checkpoint", tmp_path / "voc" / "best", model="")
    [entry] = history(tmp_path / "run")
    assert entry["eval_num_images"] == 2
    model = DetrForObjectDetection.from_pretrained(tmp_path / "run" / "best")
    assert model.config.id2label == {0: "three", 1: "five", 2: "seven"}
    assert model.config.d_model == 32
    assert DetrImageProcessor.from_pretrained(tmp_path / "run" / "best").size["shortest_edge"] == 64


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "required"),
        (("--voc", "nowhere"), "nowhere"),
        (("--dataset", "./nowhere"), "nowhere"),
        (("--digits", "0"), "--digits: 0 is not a whole number of at least 1"),
        (("--digits", "2", "--evaluate-on", "test"), "no split 'test'.*train.*--evaluate-on"),
        (("--digits", "2", "--heads", "5"), "d_model=32 does not divide among encoder_attention_heads=5"),
        (("--digits", "2", "--backbone", "resnet_of_nobody"), "resnet_of_nobody"),
        (("--digits", "2", "--checkpoint", "somewhere"), "--backbone shapes a fresh model"),
        (("--digits", "2", "--resume"), "no checkpoint in"),
        (("--digits", "2", "--clip", "-1"), "--clip -1.0 is not above 0"),
        (("--digits", "2", "--learning-rate", "-1"), "learning_rate=-1.0 is not a number of at least 0"),
        (("--digits", "2", "--workers", "-1"), "non-negative"),
        (("--digits", "2", "--longest-edge", "63"), "--longest-edge 63 is below --shortest-edge 64"),
    ],
)
def test_a_users_mistake_ends_in_one_line_and_exit_code_2(more, words, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, tmp_path / "run", *more, "--epochs", 1)
    assert stop.value.code == 2
    *usage, error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in usage if line.startswith("usage:")]) == 1
    assert error.startswith("train_accelerate.py: error: ")
    assert re.search(words, error), error
    assert not (tmp_path / "run").exists()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path, monkeypatch, capsys):
    recipe = ("--digits", 2, "--epochs", 1)
    run_here(monkeypatch, tmp_path / "run", *recipe)
    before = (tmp_path / "run" / "history.json").read_bytes()
    for more, words in (((), "holds a run already"), (("--resume", "--seed", 5), "--seed was 0 when the run began")):
        with pytest.raises(SystemExit) as stop:
            run_here(monkeypatch, tmp_path / "run", *recipe, *more)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "run" / "history.json").read_bytes() == before
