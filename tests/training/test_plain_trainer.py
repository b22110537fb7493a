"""Transformers' own Trainer trains the model on our rows, and our metric gives it COCO AP."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from hf_detr import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from hf_detr.data.collator import DetectionCollator
from hf_detr.training import CocoMetric, evaluate_model

from .conftest import PROCESSOR, model, scenes, transformed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_trainer.py"


def test_the_metric_of_a_plain_trainer_is_coco_ap(tmp_path):
    rows = scenes(5, "test")  # the last batch of 3 is not full
    detector = model()
    metric = CocoMetric(PROCESSOR, detector.config.id2label)
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
                             batch_eval_metrics=True, per_device_eval_batch_size=3)  # fmt: skip
    trainer = Trainer(
        detector,
        args,
        DetectionCollator(),
        eval_dataset=transformed(rows),
        compute_metrics=metric,
        preprocess_logits_for_metrics=metric.preprocess,
    )
    expected = evaluate_model(detector, PROCESSOR, rows).summary()
    for _ in range(2):  # each evaluation begins anew
        metrics = trainer.evaluate()
        assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected)


def test_the_example_trains_evaluates_and_saves(tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, EXAMPLE, "digits", "--images", "4", "--backbone", "test_resnet", "--shortest-edge", "64",
         "--epochs", "1", "--output", tmp_path],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert any("eval_map" in entry for entry in state["log_history"])
    assert DetrForObjectDetection.from_pretrained(tmp_path).config.id2label[3] == "three"
    assert DetrImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 64


def test_the_example_learns_masks(tmp_path, monkeypatch, capsys):
    words = "digits --images 2 --backbone test_resnet --shortest-edge 64 --epochs 1 --masks --output"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *words.split(), str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "AP50" in capsys.readouterr().out
    assert isinstance(DetrForSegmentation.from_pretrained(tmp_path), DetrForSegmentation)
    [state] = tmp_path.glob("checkpoint-*/trainer_state.json")
    assert any("eval_map" in entry for entry in json.loads(state.read_text())["log_history"])
