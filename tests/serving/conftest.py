"""Detectors to ask, images to send, and a server in a process of its own."""

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import hf_detr
from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes
from hf_detr.serving.detector import Detector
from hf_detr.serving.limits import Limits

from ..cli.conftest import ENVIRONMENT

TINY = hf_detr.tiny_checkpoint()


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def scenes() -> list[Image.Image]:
    """Images with digits that the tiny checkpoint finds, of two sizes."""
    rows = [*digit_scenes(4, seed=5, split="test"), *digit_scenes(2, seed=6, split="test", image_size=64)]
    return [row["image"] for row in rows]


@pytest.fixture
def files(tmp_path, scenes) -> list[str]:
    """Three of them, as files."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, scene in zip(paths, scenes, strict=False):
        scene.save(path)
    return [str(path) for path in paths]


@contextmanager
def open_detector(model=None, **limits) -> Iterator[Detector]:
    """The tiny checkpoint, or another model."""
    model = model or DetrForObjectDetection.from_pretrained(TINY).eval()
    detector = Detector(model, DetrImageProcessor.from_pretrained(TINY), "tiny", Limits(**limits))
    try:
        yield detector
    finally:
        detector.close()


@pytest.fixture(scope="session")
def detector() -> Iterator[Detector]:
    with open_detector() as one:
        yield one


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    """For what Gradio keeps; and images must not depend on how many threads work."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    torch.set_num_threads(1)


@contextmanager
def served(*command, cwd: Path | None = None, environment=ENVIRONMENT) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server that answers, and its address; told to stop at the end, if it has not."""
    environment = {**environment, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        line, lines = "", []
        while "serving" not in line:
            line = process.stdout.readline()
            lines.append(line)
            assert line, "".join(lines)
        yield process, re.search(r"http://[\d.:]+", line)[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=200)
