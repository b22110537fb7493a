"""Models go to the Hub and come back: real HTTP on 127.0.0.1, with the Hub's own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict, disable_progress_bars
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file

from hf_detr.data.synthetic.digits import digit_scenes

from .hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
REPO = "somebody/digit-detector"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run_worker(task: str, hub: HubServer, folder: Path) -> None:
    run_in(environment_of(hub, folder / f"home-{task}"), hub, "tests.hub.hub_worker", task, str(folder))


def run_in(environment: dict, hub: HubServer, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:] + "\n".join(hub.log[-10:])


def environment_of(hub: HubServer, home: Path) -> dict[str, str]:
    return {**os.environ, **hub.environment(home), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


# The same weights, but elsewhere in memory: matrix products round by where their operands begin.
ROUNDING = 1e-5


def assert_same_outputs(folder: Path, name: str, tolerance: float) -> None:
    pushed, loaded = load_file(folder / "pushed.safetensors"), load_file(folder / f"{name}.safetensors")
    for key, tensor in pushed.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=tolerance, atol=tolerance)


def test_what_push_to_hub_sent_loads_here_and_in_stock_with_the_same_outputs(hub, tmp_path):
    run_worker("push", hub, tmp_path)
    files = hub.repos[REPO]
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(files)
    assert not any(path.endswith((".bin", ".pt", ".pth")) for path in files)
    card = files["README.md"].decode()
    assert "library_name: transformers" in card
    assert f'DetrForObjectDetection.from_pretrained("{REPO}")' in card
    assert "cat, dog" in card
    assert json.loads(files["config.json"])["id2label"] == {"0": "cat", "1": "dog"}
    assert json.loads(files["preprocessor_config.json"])["image_processor_type"] == "DetrImageProcessor"
    assert "class_labels_classifier.weight" in load_tensors(files["model.safetensors"])

    run_worker("load", hub, tmp_path)  # a process that has the repository's name alone
    assert_same_outputs(tmp_path, "loaded", ROUNDING)
    assert_same_outputs(tmp_path, "stock", 1e-5)


def test_trainer_with_push_to_hub_leaves_a_model_that_loads(hub, tmp_path):
    run_worker("train", hub, tmp_path)
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(hub.repos[REPO])
    assert hub.commits[-1][:2] == (REPO, "End of training")
    assert_same_outputs(tmp_path, "loaded", ROUNDING)
    assert_same_outputs(tmp_path, "stock", 1e-5)


def test_the_train_command_pushes_its_run_folder_with_card_and_pictures(hub, tmp_path):
    disable_progress_bars()
    options = {"image_size": 64, "max_objects": 2, "seed": 0}
    data, run = tmp_path / "digits", tmp_path / "run"
    DatasetDict(train=digit_scenes(4, **options), test=digit_scenes(2, split="test", **options)).save_to_disk(data)
    shape = "--backbone test_resnet --d-model 32 --heads 4 --ffn-dim 48 --encoder-layers 1 --decoder-layers 2"
    words = [*shape.split(), "--num-queries", "5", "--image-size", "64", "--epochs", "1", "--workers", "0"]
    words += ["--output", str(run), "--push-to-hub", REPO, "--device", "cpu"]
    run_in(environment_of(hub, tmp_path / "home"), hub, "hf_detr.cli.main", "train", str(data), *words)
    files = hub.repos[REPO]
    assert set(files) == {
        "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.json", "curves.png",
        "predictions.png", "precision_recall.png", "confusion.png",
    }  # fmt: skip
    assert all(content == (run / path).read_bytes() for path, content in files.items())
    _, front, text = files["README.md"].decode().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["pipeline_tag"] == "object-detection"
    assert front["library_name"] == "transformers"
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == "test"
    assert f'DetrForObjectDetection.from_pretrained("{REPO}")' in text
    assert f'pipeline("object-detection", model="{REPO}")' in text
