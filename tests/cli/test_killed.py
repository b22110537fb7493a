"""`hf-detr train` killed and resumed ends as if it had been left alone, also under a time limit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_detr import tiny_checkpoint
from hf_detr.cli.main import main

from .conftest import ENVIRONMENT
from .test_train import TINY

WORKER = [sys.executable, str(Path(__file__).with_name("killed_worker.py"))]


def assert_same_weights(run: Path, expected: Path) -> None:
    tensors = load_file(expected / "model.safetensors")
    for name, tensor in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=1e-6, msg=name)


def killed(kills: int, seconds: float, *words, timeout: int) -> None:
    command = [*WORKER, str(kills), str(seconds), *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_limited_run_killed_twice_has_the_weights_of_one_that_was_left_alone(digits_dir, tmp_path):
    words = [digits_dir, *TINY, "--workers", "0", "--epochs", "6", "--no-check"]
    killed(2, 0, "--output", tmp_path / "killed", *words, "--time-limit", "1h", timeout=240)
    kept = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert kept["max_steps"] == json.loads((tmp_path / "killed" / "metrics.json").read_text())["steps"] == 24
    alone = ["train", *map(str, words), "--output", str(tmp_path / "alone")]
    assert main(alone) == 0
    assert_same_weights(tmp_path / "killed", tmp_path / "alone")
    again = ["train", *map(str, words), "--output", str(tmp_path / "killed"), "--time-limit", "1h", "--resume"]
    assert main(again) == 0  # there is nothing left to train
    assert_same_weights(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_photographs_five_minutes_killed_twice_and_left_alone_give_the_same_weights(shared, tmp_path):
    words = [shared / "data" / "bccd", "--on-bad-box", "drop", "--model", tiny_checkpoint(), "--num-queries", "40"]
    words += ["--image-size", "160", "--batch-size", "8", "--workers", "1", "--device", "cpu"]
    run = tmp_path / "killed"
    killed(2, 5, "--output", run, *words, "--time-limit", "5m", timeout=1800)
    kept, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert metrics["steps"] == (kept["stop_after"] or kept["max_steps"])
    alone = ["--config", str(run / "run.json"), "--output", str(tmp_path / "alone"), "--time-limit", "1h"]
    assert main(["train", *alone]) == 0
    assert_same_weights(run, tmp_path / "alone")
