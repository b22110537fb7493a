"""The commands as a user runs them, in a process of their own, and tiny things to run them on."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from datasets import DatasetDict, disable_progress_bars
from PIL import Image

from hf_detr import DetrImageProcessor
from hf_detr.cli.main import main
from hf_detr.data.synthetic.digits import digit_scenes

from ..small_models import small_model

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND = [sys.executable, "-m", "hf_detr.cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def hf_detr(*words, cwd=None, environment=ENVIRONMENT) -> subprocess.CompletedProcess:
    """`hf-detr WORDS`, finished; with `stdout`, `stderr`, `returncode`."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)


def hf_detr_here(monkeypatch, *words) -> int:
    """`hf-detr WORDS` in this process, which spares its start; returns the exit code."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # so that what main sets ends with the test
    monkeypatch.setenv("MALLOC_ARENA_MAX_", "")  # and the memory of this process stays as it is
    return main([*map(str, words)])


def assert_one_line_and_exit_code_2(done: subprocess.CompletedProcess, *parts: str) -> None:
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A small model of random weights that knows cats, dogs and something else, in an order of its own."""
    folder = tmp_path_factory.mktemp("model")
    model = small_model(num_labels=3)
    model.config.id2label, model.config.label2id = {0: "bird", 1: "dog", 2: "cat"}, {"bird": 0, "dog": 1, "cat": 2}
    model.save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """Generated scenes with splits train and test, written by save_to_disk."""
    disable_progress_bars()
    folder = tmp_path_factory.mktemp("data") / "digits"
    options = {"image_size": 64, "max_objects": 3, "seed": 0}
    DatasetDict(train=digit_scenes(8, **options), test=digit_scenes(3, split="test", **options)).save_to_disk(folder)
    return folder


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture that no other is like."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_coco(root: Path) -> Path:
    """COCO of two classes with ids 7 (cat) and 3 (dog), one split, three pictures of which one has no objects."""
    import json

    from ..data.tiny_data import SCENES, SIZE_WH, coco_content

    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    for seed, stem in enumerate(SCENES):
        noise(*SIZE_WH, seed).save(root / "val2017" / f"{stem}.png")
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(coco_content(ids=(7, 3))))
    return root
