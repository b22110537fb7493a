"""The short examples do what they say on generated images, and stay short."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_detr import DetrForObjectDetection

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHORT = ("inference.py", "train_trainer.py", "custom_backbone.py", "lora.py")


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


@pytest.mark.parametrize("name", SHORT)
def test_the_short_ones_are_short_and_in_the_index(name):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60
    assert f"]({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
