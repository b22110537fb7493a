"""What the masks cost in memory, each measured in a process of its own."""

import resource
import subprocess
import sys
import warnings

import pytest
import torch

from hf_detr import DetrConfig, DetrForSegmentation
from tests.small_models import images, targets

GIB = 2**30
CANVAS = (800, 1066)


def peak_of(work: str) -> int:
    """Bytes that a process takes at most while it does one of the functions below."""
    command = [sys.executable, "-W", "ignore", "-c", f"from tests import test_mask_memory as t; t.{work}()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def published() -> DetrForSegmentation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DetrForSegmentation(DetrConfig(backbone="resnet50", num_labels=91))


def print_peak() -> None:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def train() -> None:
    """A step on two images with 30 objects each, optimizer included."""
    model = published().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    sizes_hw = (CANVAS, CANVAS)
    model(images(*sizes_hw)[0], labels=targets(30, 30, sizes_hw=sizes_hw)).loss.backward()
    optimizer.step()
    print_peak()


def infer_all() -> None:
    _infer()


def infer_few() -> None:
    _infer(mask_top_k=5)


def _infer(**keep) -> None:
    model, pixels = published().eval(), images(*[CANVAS] * 4)[0]
    model.config.chunk_size_backbone = 1
    with torch.no_grad():
        model(pixels, **keep)
    print_peak()


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_two_large_images_with_30_objects_each_train_within_12_gib():
    assert peak_of("train") < 12 * GIB


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_masks_that_are_not_kept_take_no_memory():
    of_all_masks = 4 * 100 * 200 * 267 * 4  # bytes: images, queries, rows, columns, of a float
    assert peak_of("infer_few") < peak_of("infer_all") - 0.9 * of_all_masks
