"""examples/train_accelerate.py, run as its reader runs it."""

import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from hf_detr import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from hf_detr.data.synthetic.digits import digit_scenes

from ..small_models import small_model

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_accelerate.py"
PARTS = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
LOSSES = ("loss", *PARTS[:3], "loss_ce_0")
SMALL = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32}
SMALL |= {"decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8}
NO_DROPOUT = {"dropout": 0, "attention_dropout": 0, "activation_dropout": 0}


def fresh(**fields: object) -> tuple[str, ...]:
    return ("--backbone", "test_resnet", "--config", json.dumps(SMALL | fields), "--shortest-edge", "64")


SMALL_MODEL = fresh()


def arguments(output: Path, *more: object, model: tuple[str, ...] = SMALL_MODEL) -> list[str]:
    return [*model, "--workers", "0", "--output", str(output), *map(str, more)]


def run_script(output: Path, *more: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(SCRIPT), *arguments(output, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


def run_here(monkeypatch, output: Path, *more: object, model: tuple[str, ...] = SMALL_MODEL) -> None:
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


def last_checkpoint(output: Path) -> Path:
    [folder] = (output / "checkpoints").iterdir()
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    expected, got = weights(one), weights(other)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory) -> Path:
    """Six images of 80 x 60 with a bright rectangle each, four to train on."""
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
    done = run_script(output, "--voc", voc_folder, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images, 4 objects, 0 images without, at most 1 an image" in done.stdout
    assert "validation: 2 images, 2 objects" in done.stdout
    assert "classes: door, lamp" in done.stdout
    model = DetrForObjectDetection.from_pretrained(output / "best")
    processor = DetrImageProcessor.from_pretrained(output / "best")
    assert model.config.id2label == {0: "door", 1: "lamp"}
    assert processor.size == {"shortest_edge": 64, "longest_edge": 106}
    image = Image.open(voc_folder / "JPEGImages" / "0.jpg")
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    assert outputs.logits.shape == (1, 8, 3)
    [entry] = history(output)
    parts = ("loss", *(f"{part}{layer}" for part in PARTS for layer in ("", "_0")), "class_error")
    assert all(np.isfinite(entry[name]) and entry[name] >= 0 for name in parts)
    assert {name for name in entry if name.startswith("loss")} == {name for name in parts if name.startswith("loss")}
    assert entry["eval_num_images"] == 2
    assert (output / "curves.png").stat().st_size > 0


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(tmp_path, monkeypatch):
    # dropout, augmentation, shuffling, accumulation and a drop of the learning rate: all that has a state
    recipe = ("--digits", 5, "--batch-size", 1, "--gradient-accumulation", 2, "--lr-drop", 2)
    recipe = (*recipe, "--ema", 0.9, "--patience", 3, "--group-by-aspect-ratio")
    run_here(monkeypatch, tmp_path / "whole", *recipe, "--epochs", 3)
    run_here(monkeypatch, tmp_path / "halves", *recipe, "--epochs", 1)
    done = run_script(tmp_path / "halves", *recipe, "--epochs", 3, "--resume")
    assert done.returncode == 0, done.stderr
    whole, halves = history(tmp_path / "whole"), history(tmp_path / "halves")
    assert_same_losses(whole, halves, 1e-6)
    assert whole[0]["loss"] != whole[1]["loss"]
    assert [entry["learning_rate"] for entry in halves] == [pytest.approx(rate) for rate in (1e-4, 1e-4, 1e-5)]
    assert [entry["step"] for entry in halves] == [3, 6, 9]
    assert_same_weights(tmp_path / "whole" / "best", tmp_path / "halves" / "best", 1e-6)
    assert_same_weights(*(last_checkpoint(tmp_path / name) for name in ("whole", "halves")), 1e-6)


BIG_BATCH = fresh(freeze_backbone_norms=True, freeze_backbone_until="auto", **NO_DROPOUT)
BIG_BATCH += ("--digits", 8, "--epochs", 2, "--augment", "none", "--learning-rate", 1e-3)
BIG_BATCH += ("--ema", 0.5)


@pytest.fixture(scope="module")
def big_batch(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("big")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_here(monkeypatch, output / "run", *BIG_BATCH, "--batch-size", 4)
    return output / "run"


def test_accumulated_passes_have_the_losses_and_weights_of_one_big_batch(tmp_path, monkeypatch, big_batch):
    run_here(monkeypatch, tmp_path / "run", *BIG_BATCH, "--batch-size", 1, "--gradient-accumulation", 4)
    assert_same_losses(history(tmp_path / "run"), history(big_batch), 1e-4)
    assert_same_weights(last_checkpoint(big_batch), last_checkpoint(tmp_path / "run"), 1e-3)
    assert_same_weights(big_batch / "best", tmp_path / "run" / "best", 1e-3)


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
def test_two_processes_have_the_losses_of_one_big_batch(tmp_path, big_batch, launcher, batch_size, accumulation):
    batch = ("--batch-size", batch_size, "--gradient-accumulation", accumulation)
    done = run_script(tmp_path / "run", *BIG_BATCH, *batch, launcher=(*launcher, free_port()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: 8 images") == 1  # one process speaks
    found = history(tmp_path / "run")
    assert_same_losses(found, history(big_batch), 1e-4)
    assert_same_weights(big_batch / "best", tmp_path / "run" / "best", 1e-3)
    assert [entry["eval_num_images"] for entry in found] == [2, 2]
    assert [entry["eval_num_duplicates"] for entry in found] == [0, 0]


def test_a_run_stops_when_ap_grows_no_more_and_stays_stopped(tmp_path, monkeypatch, capsys):
    recipe = ("--digits", 2, "--learning-rate", 1e-9, "--backbone-learning-rate", 0)  # AP stays what it is
    run_here(monkeypatch, tmp_path / "run", *recipe, "--epochs", 9, "--patience", 2)
    assert len(history(tmp_path / "run")) == 3
    assert "No better AP in 2 evaluations: stopped after epoch 3" in capsys.readouterr().out
    run_here(monkeypatch, tmp_path / "run", *recipe, "--epochs", 9, "--patience", 2, "--resume")
    assert len(history(tmp_path / "run")) == 3
    run_here(monkeypatch, tmp_path / "run", *recipe, "--epochs", 4, "--patience", 5, "--resume")
    assert len(history(tmp_path / "run")) == 4


def test_the_fast_recipe_leaves_a_plain_detr_and_resumes_exactly(tmp_path, monkeypatch):
    recipe = ("--digits", 4, "--recipe", "fast", "--batch-size", 2)
    run_here(monkeypatch, tmp_path / "whole", *recipe, "--epochs", 2)
    run_here(monkeypatch, tmp_path / "halves", *recipe, "--epochs", 1)
    run_here(monkeypatch, tmp_path / "halves", *recipe, "--epochs", 2, "--resume")
    assert all("loss_encoder" in entry for entry in history(tmp_path / "halves"))
    assert_same_losses(history(tmp_path / "whole"), history(tmp_path / "halves"), 1e-6)
    assert_same_weights(*(last_checkpoint(tmp_path / name) for name in ("whole", "halves")), 1e-6)
    assert any("training_only" in name for name in weights(last_checkpoint(tmp_path / "halves")))
    assert not any("training_only" in name for name in weights(tmp_path / "halves" / "best"))
    moved = weights(last_checkpoint(tmp_path / "halves")), weights(tmp_path / "halves" / "best")
    assert not torch.equal(*(one["class_labels_classifier.weight"] for one in moved))  # the average


def test_averaged_weights_are_what_is_evaluated_and_kept(tmp_path, monkeypatch):
    recipe = ("--digits", 4, "--epochs", 1, "--learning-rate", 1e-2, "--batch-size", 1)
    run_here(monkeypatch, tmp_path / "run", *recipe, "--ema", 0.999)
    run_here(monkeypatch, tmp_path / "without", *recipe)
    assert_same_weights(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "without"), 0)
    trained, averaged = weights(last_checkpoint(tmp_path / "run")), weights(tmp_path / "run" / "best")
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, averaged[name])]
    assert "class_labels_classifier.weight" in moved
    assert_same_weights(tmp_path / "without" / "best", last_checkpoint(tmp_path / "without"), 0)


def test_bad_boxes_end_a_run_or_are_counted(voc_folder, tmp_path, monkeypatch, capsys):
    root = tmp_path / "voc"
    shutil.copytree(voc_folder, root)
    file = root / "Annotations" / "2.xml"
    tree = ElementTree.parse(file)
    tree.find("object/bndbox/xmin").text = tree.find("object/bndbox/xmax").text = "20.5"
    tree.write(file)
    with pytest.raises(SystemExit):
        run_here(monkeypatch, tmp_path / "run", "--voc", root, "--epochs", 1)
    assert re.search(r"2\.xml.*no area.*on_bad_box='drop'", capsys.readouterr().err)
    with pytest.warns(UserWarning, match=r"split 'train': of 4 boxes 1 dropped \(no area: 1\)"):
        run_here(monkeypatch, tmp_path / "run", "--voc", root, "--epochs", 1, "--on-bad-box", "drop")
    assert "train: 4 images, 3 objects, 1 images without" in capsys.readouterr().out


def test_collapsed_queries_are_warned_of(tmp_path, monkeypatch):
    names = dict(enumerate(digit_scenes(1).features["objects"]["category"].feature.names))
    model = small_model(id2label=names, num_labels=10, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    torch.nn.init.zeros_(model.model.query_position_embeddings.weight)
    model.save_pretrained(tmp_path / "model")
    DetrImageProcessor(size=64, max_size=64).save_pretrained(tmp_path / "model")
    recipe = ("--digits", 2, "--epochs", 1, "--checkpoint", tmp_path / "model")
    with pytest.warns(UserWarning, match="epoch 1: the queries have collapsed"):
        run_here(monkeypatch, tmp_path / "run", *recipe, model=())
    # more queries than the checkpoint has: the new ones start from random numbers
    run_here(monkeypatch, tmp_path / "wider", *recipe, "--queries", 12, model=())
    assert DetrForObjectDetection.from_pretrained(tmp_path / "wider" / "best").config.num_queries == 12


def test_numbers_that_are_not_finite_end_a_run_and_name_step_and_images(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"step 2, images \[[0-3]\]: The predictions are not finite"):
        run_here(
            monkeypatch, tmp_path / "run", "--digits", 4, "--batch-size", 1, "--learning-rate", 1e30, "--epochs", 1
        )


def _train(words: list[str]) -> None:
    torch.set_num_threads(1)
    sys.argv = [str(SCRIPT), *words]
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    recipe = ("--digits", 10, "--batch-size", 2, "--epochs", 6, "--ema", 0.9)
    processes = multiprocessing.get_context("forkserver")  # which imports once for all
    processes.set_forkserver_preload(["torch", "transformers", "accelerate", "hf_detr.training"])

    def run(output: Path, seconds: float | None) -> int:
        resume = ("--resume",) if list((output / "checkpoints").glob("epoch-*")) else ()
        process = processes.Process(target=_train, args=(arguments(output, *recipe, *resume),))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    assert run(tmp_path / "warm", None) == 0
    started = time.perf_counter()
    assert run(tmp_path / "undisturbed", None) == 0
    duration = time.perf_counter() - started
    for attempt in range(5):
        output, kills = tmp_path / f"killed-{attempt}", 0
        while (code := run(output, random.uniform(0, duration) if kills < 3 else None)) != 0:
            assert code == -signal.SIGKILL
            kills += 1
        assert_same_losses(history(tmp_path / "undisturbed"), history(output), 1e-6)
        assert_same_weights(tmp_path / "undisturbed" / "best", output / "best", 1e-6)
        assert_same_weights(last_checkpoint(tmp_path / "undisturbed"), last_checkpoint(output), 1e-6)


def test_a_saved_dataset_and_a_checkpoint_start_a_run_for_new_classes(voc_folder, tmp_path, monkeypatch):
    run_here(monkeypatch, tmp_path / "voc", "--voc", voc_folder, "--epochs", 1)
    rows = digit_scenes(3, digits=(3, 5, 7))
    rows.save_to_disk(tmp_path / "rows")
    source = ("--dataset", tmp_path / "rows", "--evaluate-on", "train", "--limit", 2, "--epochs", 1)
    run_here(monkeypatch, tmp_path / "run", *source, "--checkpoint", tmp_path / "voc" / "best", model=())
    [entry] = history(tmp_path / "run")
    assert entry["eval_num_images"] == 2
    model = DetrForObjectDetection.from_pretrained(tmp_path / "run" / "best")
    assert model.config.id2label == {0: "three", 1: "five", 2: "seven"}
    assert model.config.d_model == 32
    assert DetrImageProcessor.from_pretrained(tmp_path / "run" / "best").size["shortest_edge"] == 64


def test_masks_are_learnt_and_judged_by_their_ap(tmp_path, monkeypatch):
    run_here(
        monkeypatch,
        tmp_path / "run",
        "--digits",
        2,
        "--epochs",
        1,
        "--masks",
        *fresh(encoder_attention_heads=8, decoder_attention_heads=8),
    )
    [entry] = history(tmp_path / "run")
    assert {"loss_mask", "loss_dice", "eval_map"} <= set(entry)
    assert isinstance(DetrForSegmentation.from_pretrained(tmp_path / "run" / "best"), DetrForSegmentation)


@pytest.mark.parametrize("example", ["train_accelerate", "train_trainer"])
def test_a_lone_split_of_another_name_is_trained_and_a_part_of_it_evaluated_on(tmp_path, monkeypatch, example):
    from ..data.tiny_data import coco_content, write_pictures  # as CVAT exports it

    write_pictures(tmp_path / "cvat" / "images" / "default")
    (tmp_path / "cvat" / "annotations").mkdir()
    (tmp_path / "cvat" / "annotations" / "instances_default.json").write_text(json.dumps(coco_content()))
    if example == "train_accelerate":
        run_here(monkeypatch, tmp_path / "run", "--dataset", tmp_path / "cvat", "--epochs", 1)
        [entry] = history(tmp_path / "run")
        assert entry["eval_num_images"] == 1
        return
    more = ("--backbone", "test_resnet", "--shortest-edge", "64", "--epochs", "1", "--output", str(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["train_trainer.py", str(tmp_path / "cvat"), *more])
    names = runpy.run_path(str(SCRIPT.with_name("train_trainer.py")), run_name="__main__")
    assert (len(names["trainer"].train_dataset), len(names["held_out"])) == (2, 1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "required"),
        (("--voc", "nowhere"), "nowhere"),
        (("--dataset", "./nowhere"), "nowhere"),
        (("--digits", "0"), "--digits: 0 is not a whole number of at least 1"),
        (("--digits", "2", "--evaluate-on", "test"), "no split 'test'.*train.*--evaluate-on"),
        (("--digits", "2", *fresh(encoder_attention_heads=5)), "d_model=32 does not divide among encoder_attention_h"),
        (("--digits", "2", "--config", "{d_model: 32}"), "--config: invalid"),
        (("--digits", "2", "--backbone", "resnet_of_nobody"), "resnet_of_nobody"),
        (("--digits", "2", "--checkpoint", "somewhere"), "shape a fresh model"),
        (("--digits", "2", "--resume"), "holds no checkpoint"),
        (("--digits", "2", "--clip", "-1"), "--clip -1.0 is not above 0"),
        (("--digits", "2", "--learning-rate", "-1"), "learning_rate=-1.0 is not a number of at least 0"),
        (("--digits", "2", "--ema", "1"), "--ema 1.0 is not between 0 and 1"),
        (("--digits", "2", "--recipe", "slow"), "invalid choice: 'slow'"),
        (("--digits", "2", "--patience", "0"), "--patience: 0 is not a whole number of at least 1"),
        (("--digits", "2", "--workers", "-1"), "non-negative"),
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
    for more, words in (
        ((), "holds a run already"),
        (("--resume", "--seed", 5), "--seed was 0 when the run began"),
        (("--resume", "--ema", 0.9), "--ema was None when the run began, now it is 0.9"),
        (("--resume", *fresh(d_model=64)), "--config was"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_here(monkeypatch, tmp_path / "run", *recipe, *more)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "run" / "history.json").read_bytes() == before
