"""Fifty steps of training, of which every loss is kept in tests/golden/training_run.json.

python -m tests.training.golden_run     # writes it again, after a change that is meant to move training
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.small_models import images, small_model, small_segmenter, targets, with_statistics

FILE = Path(__file__).resolve().parents[1] / "golden" / "training_run.json"
STEPS = 50
SIZES = ((64, 64), (48, 64), (64, 56), (64, 64))
KINDS = {"boxes": small_model, "masks": small_segmenter}
# What processors compute alike: nothing drawn by torch, and no sines in float32; a difference of 1e-7 in the first step
# is one of 1e-3 in the twentieth.
FIELDS = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "position_embedding_type": "learned"}
FIELDS |= {"query_groups": 2, "encoder_auxiliary_loss": True}


def trajectory(kind: str) -> list[float]:
    """The loss before each step, in float64: two batches of two images in turn, AdamW and clipped gradients as in the
    paper."""
    random = np.random.RandomState(0)

    def normal(shape) -> torch.Tensor:
        return torch.from_numpy(np.asarray(random.standard_normal(tuple(shape))))

    model = with_statistics(KINDS[kind](**FIELDS).double(), normal=normal).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=1e-4)
    mask = images(*SIZES)[1]
    pixels = normal((len(SIZES), 3, 64, 64)) * mask[:, None]
    labels = targets(3, 1, 0, 5, sizes_hw=SIZES)
    losses = []
    for step in range(STEPS):
        batch = slice(0, 2) if step % 2 else slice(2, 4)
        loss = model(pixels[batch], mask[batch], labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    runs = {kind: [float(f"{loss:.10g}") for loss in trajectory(kind)] for kind in KINDS}
    FILE.write_text(json.dumps(runs, indent=1) + "\n")
