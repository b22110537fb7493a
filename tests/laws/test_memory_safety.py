"""Training writes only into memory that is its own, whichever memory format the package chooses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.small_models import images, small_model, targets

# Its first layer is a 1x1 convolution of three channels with stride 2, whose backward pass in PyTorch writes out of
# bounds where maps lie channels last.
_TRAIN = """
import torch
from tests.small_models import images, small_model, targets

model = small_model(backbone="repvgg_a0", freeze_backbone_norms=False, freeze_backbone_until=None).train()
pixels = images((224, 224), (224, 224))[0]
for _ in range(3):
    loss = model(pixels, labels=targets(2, 3)).loss
    loss.backward()
assert loss.isfinite()
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's checks of the heap")
def test_training_does_not_corrupt_the_heap():
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *sys.path])
    checks = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRAIN],
        env={**os.environ, **checks, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.endswith("done\n")


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_no_strided_convolution_of_few_channels_is_trained_channels_last(name):
    model = small_model(backbone=name, freeze_backbone_norms=False, freeze_backbone_until=None).train()
    seen = []
    for part in model.modules():
        if (
            isinstance(part, nn.Conv2d)
            and part.kernel_size == (1, 1)
            and max(part.stride) > 1
            and part.in_channels < 16
        ):
            part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images((64, 64), (64, 64))[0], labels=targets(2, 3))  # no backward pass, which might end this process
    assert seen
    assert all(x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last) for x in seen)
