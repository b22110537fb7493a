"""`hf-detr demo`, by its public door."""

import json

import pytest
import torch
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.cli.main import main
from hf_detr.data.digits import digit_scenes


def test_the_demo_leaves_a_run_folder_and_fails_where_nothing_was_learnt(tmp_path, capsys):
    output = tmp_path / "a" / "b"
    assert main(["demo", "--output", str(output), "--steps", "2", "--scenes", "3"]) == 1
    said = capsys.readouterr().out
    assert "AP50" in said  # the table
    assert "not above 0.8" in said
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["num_images"] == 3
    assert metrics["map_50"] < 0.8
    assert Image.open(output / "predictions.png").size[0] > 900

    processor = DetrImageProcessor.from_pretrained(output)
    model = DetrForObjectDetection.from_pretrained(output).eval()
    scene = digit_scenes(1)[0]["image"]
    with torch.no_grad():
        outputs = model(**processor(images=scene, return_tensors="pt"))
    [detections] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(96, 96)])
    assert len(detections["boxes"]) == model.config.num_queries
    assert model.config.id2label[9] == "nine"


@pytest.mark.parametrize("wrong", [("--steps", "0"), ("--scenes", "-1")])
def test_impossible_numbers_end_in_one_line_and_exit_code_2(wrong, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "run"), *wrong]) == 2
    assert f"{wrong[0]} {wrong[1]}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_demo_learns_its_scenes(tmp_path):
    assert main(["demo", "--output", str(tmp_path / "run")]) == 0
