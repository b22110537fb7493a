"""Models go to the Hub and come back: real HTTP on 127.0.0.1, with the Hub's own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file

from .hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
REPO = "somebody/digit-detector"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run_worker(task: str, hub: HubServer, folder: Path) -> None:
    environment = {**os.environ, **hub.environment(folder / f"home-{task}"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub.hub_worker", task, str(folder)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + "\n".join(hub.log[-10:])


def assert_same_outputs(folder: Path, name: str, tolerance: float) -> None:
    pushed, loaded = load_file(folder / "pushed.safetensors"), load_file(folder / f"{name}.safetensors")
    for key, tensor in pushed.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=tolerance, atol=tolerance)


def test_what_push_to_hub_sent_loads_here_and_in_stock_with_the_same_outputs(hub, tmp_path):
    run_worker("push", hub, tmp_path)
    files = hub.repos[REPO]
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(files)
    assert not any(path.endswith((".bin", ".pt", ".pth")) for path in files)
    assert json.loads(files["config.json"])["id2label"] == {"0": "cat", "1": "dog"}
    assert json.loads(files["preprocessor_config.json"])["image_processor_type"] == "DetrImageProcessor"
    assert "class_labels_classifier.weight" in load_tensors(files["model.safetensors"])

    run_worker("load", hub, tmp_path)  # a process that has the repository's name alone
    assert_same_outputs(tmp_path, "loaded", 0.0)
    assert_same_outputs(tmp_path, "stock", 1e-5)


def test_trainer_with_push_to_hub_leaves_a_model_that_loads(hub, tmp_path):
    run_worker("train", hub, tmp_path)
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(hub.repos[REPO])
    assert hub.commits[-1][:2] == (REPO, "End of training")
    assert_same_outputs(tmp_path, "loaded", 0.0)
    assert_same_outputs(tmp_path, "stock", 1e-5)
