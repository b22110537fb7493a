"""`hf-detr demo` and the checkpoint it starts from, by their public doors."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from hf_detr import (
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrImageProcessor,
    digit_scenes,
    evaluate_model,
    tiny_checkpoint,
)
from hf_detr.cli.main import main
from hf_detr.data.synthetic.shapes import SHAPE_NAMES


def test_the_small_checkpoint_has_the_size_and_the_ap_that_its_card_states():
    folder = Path(tiny_checkpoint())
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8e6
    card = (folder / "README.md").read_text()
    stated = {name: float(value) for name, value in re.findall(r"\| (AP\d*)(?: \(.*\))? \| ([\d.]+) \|", card)}
    assert re.search(r"\d+ minutes", card)
    model = DetrForObjectDetection.from_pretrained(folder)
    scenes = digit_scenes(500, 96, seed=1, split="test").select(range(100))
    numbers = evaluate_model(model, DetrImageProcessor.from_pretrained(folder), scenes, batch_size=50).compute()
    # a fifth of the scenes that the card speaks of
    assert abs(numbers["map"] - stated["AP"]) < 0.08
    assert abs(numbers["map_50"] - stated["AP50"]) < 0.08


def test_the_small_checkpoint_is_a_plain_detr_for_stock_transformers():
    stock, info = transformers.DetrForObjectDetection.from_pretrained(tiny_checkpoint(), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = DetrForObjectDetection.from_pretrained(tiny_checkpoint()).eval()
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(pixels).logits, ours(pixels).logits, rtol=0, atol=1e-4)


def test_the_demo_leaves_a_run_folder_and_fails_where_too_little_was_learnt(tmp_path, capsys):
    output = tmp_path / "a" / "b"
    assert main(["demo", "--output", str(output), "--scenes", "16", "--epochs", "1"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"Before: AP 0\.0\d\d, AP50 0\.\d{3}", said)
    assert re.search(r"After:  AP 0\.\d{3}, AP50 0\.\d{3}", said)
    assert "120 images" in said  # the table is of the whole test split
    assert "below 0.8" in said
    assert json.loads((output / "metrics.json").read_text())["metrics"]["map_50"] < 0.8
    assert {"README.md", "curves.png", "predictions.png", "data"} <= {file.name for file in output.iterdir()}
    assert Image.open(output / "predictions.png").size[0] > 900
    model = DetrForObjectDetection.from_pretrained(output)
    assert tuple(model.config.id2label.values()) == SHAPE_NAMES

    # a second time, and nothing is written over
    assert main(["demo", "--output", str(output)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_the_panoptic_demo_trains_boxes_and_then_masks_on_the_frozen_detector(tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["demo", "--task", "panoptic", "--output", str(output), "--scenes", "8", "--epochs", "1"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"Before: PQ 0\.0\d\d", said)
    assert re.search(r"After:  PQ 0\.\d{3}", said)
    assert "below 0.2" in said
    boxes, masks = (load_file(folder / "model.safetensors") for folder in (output / "detector", output))
    assert all(torch.equal(masks[f"detr.{name}"], tensor) for name, tensor in boxes.items())
    assert DetrForSegmentation.from_pretrained(output).config.label_ids_to_fuse == [10, 11, 12, 13]


@pytest.mark.parametrize("wrong", [("--epochs", "0"), ("--scenes", "-1")])
def test_impossible_numbers_end_in_exit_code_2(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--output", str(tmp_path / "run"), *wrong])
    assert stop.value.code == 2
    assert f"{wrong[1]} is not a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_learns_shapes(tmp_path):
    assert main(["demo", "--output", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["metrics"]["map_50"] >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_panoptic_demo_learns_segments(tmp_path):
    """About three minutes of one core."""
    assert main(["demo", "--task", "panoptic", "--output", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert metrics["pq"] >= 0.2
