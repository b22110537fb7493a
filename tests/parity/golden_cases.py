"""The original's numbers: weights by rule, inputs, outputs (see tests/golden/README.md)."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "golden"
DETECTION_CASES = ("resnet18_sine", "resnet18_learned", "resnet50_dc5", "resnet50_default")
SEGMENTATION_CASE = "resnet50_segmentation"


@dataclass
class GoldenCase:
    """One file: the arguments it was made with, every tensor by name, and the weights of the rule."""

    name: str
    args: dict
    num_classes: int
    sizes_hw: list[tuple[int, int]]
    tensors: dict[str, Tensor]
    shapes: dict[str, list[int]]

    @classmethod
    def read(cls, name: str) -> "GoldenCase":
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        return cls(
            name=name,
            args=json.loads(metadata["args"]),
            num_classes=int(metadata["num_classes"]),
            sizes_hw=[tuple(size) for size in json.loads(metadata["sizes"])],
            tensors=tensors,
            shapes=json.loads(metadata["keys"]),
        )

    def weights(self) -> dict[str, Tensor]:
        """The original's state dict, as a published .pth holds it."""
        return {name: _by_rule(name, shape) for name, shape in self.shapes.items()}

    def batch(self) -> tuple[Tensor, Tensor]:
        """pixel_values (B, 3, H, W) and pixel_mask (B, H, W)."""
        height, width = max(h for h, _ in self.sizes_hw), max(w for _, w in self.sizes_hw)
        pixel_values = torch.zeros(len(self.sizes_hw), 3, height, width)
        pixel_mask = torch.zeros(len(self.sizes_hw), height, width, dtype=torch.int64)
        for index, (h, w) in enumerate(self.sizes_hw):
            pixel_values[index, :, :h, :w] = self.tensors[f"image_{index}"]
            pixel_mask[index, :h, :w] = 1
        return pixel_values, pixel_mask

    def labels(self) -> list[dict[str, Tensor]]:
        names = {"class_labels": "class_labels", "boxes": "boxes_cxcywh", "masks": "masks"}
        return [
            {
                ours: self.tensors[f"target_{index}.{theirs}"]
                for ours, theirs in names.items()
                if f"target_{index}.{theirs}" in self.tensors
            }
            for index in range(len(self.sizes_hw))
        ]


def _by_rule(name: str, shape: list[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        value = 0.5 + np.abs(n)
    elif name.endswith("running_mean") or name.endswith((".bias", "in_proj_bias")):
        value = 0.1 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    elif any(part in name for part in ("query_embed", "row_embed", "col_embed")):
        value = n
    else:
        gain = 1.0
        if "backbone" in name:
            gain = 2**0.5
        elif "encoder" in name:
            gain = 0.5
        elif "in_proj" in name:
            gain = 1.5
        elif "out_proj" in name:
            gain = 2.0
        value = n / np.sqrt(np.prod(shape[1:])) * gain
    return torch.from_numpy(np.asarray(value)).float()
