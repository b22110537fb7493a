"""The scenes on which the transformer of the start is trained."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "pretrain_start.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pretrain_start", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_boxes_lie_in_the_image_and_each_has_a_class(script):
    for seed in range(12):
        image, boxes, classes = script.paint_scene(seed)
        assert image.shape == (script.SIDE, script.SIDE, 3)
        assert image.dtype == np.uint8
        assert 1 <= len(boxes) == len(classes) <= 30
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
        assert set(classes.tolist()) <= set(range(len(script.SHAPES)))


@pytest.mark.parametrize("shape", ["ellipse", "star", "crescent", "arrow"])
def test_boxes_are_tight_around_what_is_seen(script, shape):
    coverage = script.draw(np.random.default_rng(1), shape, 60)
    seen = coverage > 0.35
    assert all(edge.any() for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))


def test_mirrored_and_turned_scenes_keep_their_boxes(script):
    """A bright square on black is where its box says, whatever was drawn by chance."""
    side = script.SIDE
    scene = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    scene[:, :, 40:80, 200:280] = 255
    box = torch.tensor([[240 / side, 60 / side, 80 / side, 40 / side]])
    for seed in range(8):
        batch = script.batch_of(scene, [(box, torch.tensor([0]))], [0], np.random.default_rng(seed), 0.0, 1.0)
        pixels, found = batch["pixel_values"][0, 0], batch["labels"][0]["boxes"][0]
        height, width = pixels.shape
        rows, columns = torch.nonzero(pixels.amax(1) > 0.5).flatten(), torch.nonzero(pixels.amax(0) > 0.5).flatten()
        cx, cy, w, h = found.tolist()
        seen = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
        assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx([float(s) for s in seen], abs=0.01)
