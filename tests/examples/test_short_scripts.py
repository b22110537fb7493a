"""The short examples do what they say on generated images, and stay short."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_detr import DetrForObjectDetection, DetrForSegmentation, tiny_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHORT = ("inference.py", "train_trainer.py", "custom_backbone.py", "masks.py", "lora.py")
TOOLS = (
    "pretrain_start.py",
    "start_from_efficientnet.py",
    "train_tiny_checkpoint.py",
)  # that made what the documentation shows


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in an empty folder; what it prints."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def losses(printed: str) -> list[float]:
    return [float(line.split("loss ")[1]) for line in printed.splitlines() if line.startswith("step")]


def test_inference_finds_and_draws(run):
    printed = run("inference.py", "--output", "found.png")
    assert "seven 1.00 at" in printed
    assert os.path.getsize("found.png") > 10_000


def test_inference_takes_files(run):
    run("inference.py", "--output", "generated.png")
    printed = run("inference.py", "--images", "generated.png", "generated.png", "--output", "again.png")
    assert "image 1:" in printed
    assert os.path.exists("again.png")


def test_a_custom_backbone_learns_and_is_saved(run):
    printed = run("custom_backbone.py", "--backbone", "test_convnext", "--steps", "21", "--output", "model")
    assert losses(printed)[-1] < losses(printed)[0]
    assert DetrForObjectDetection.from_pretrained("model").config.backbone_config.backbone == "test_convnext"


def test_lora_learns_and_leaves_a_plain_detector(run):
    printed = run("lora.py", "--steps", "21", "--output", "model")
    assert losses(printed)[-1] < 0.8 * losses(printed)[0]
    model, info = DetrForObjectDetection.from_pretrained("model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_labels == 5


def test_masks_are_learnt_on_a_detector_that_stays_as_it_is(run):
    printed = run("masks.py", "--steps", "21", "--output", "model")
    assert losses(printed)[-1] < losses(printed)[0]
    assert "AP50" in printed
    assert os.path.getsize("model/found.png") > 10_000
    trained = DetrForSegmentation.from_pretrained("model")
    detector = load_file(f"{tiny_checkpoint()}/model.safetensors")
    for name, weights in trained.detr.state_dict().items():
        assert torch.equal(weights, detector[name]), name


def test_the_short_ones_are_short_and_the_loop_not_long():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(lines) == {*SHORT, *TOOLS, "train_accelerate.py"}
    assert all(lines[name] < 60 for name in SHORT), lines
    assert lines["train_accelerate.py"] <= 300


def test_the_index_says_which_to_copy_and_which_not():
    to_copy, others = (EXAMPLES / "README.md").read_text(encoding="utf-8").split("Not to copy")
    assert all(f"]({name})" in to_copy for name in (*SHORT, "train_accelerate.py"))
    assert all(f"]({name})" in others for name in TOOLS)
