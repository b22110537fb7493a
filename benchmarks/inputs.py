"""What the contestants are given: random images, labels, photographs and weights, each from its seed."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only

NUM_CLASSES = 91  # as the published checkpoints

# (height, width) in COCO's proportions of portraits, landscapes and squares, shorter edge 1
_ASPECTS_HW = ((1, 4 / 3), (4 / 3, 1), (1, 1.5), (1, 1), (1.5, 1), (1, 16 / 9), (1, 4 / 3), (1.25, 1))


def mixed_sizes(count: int, shortest_edge: int) -> list[tuple[int, int]]:
    """(height, width) of `count` images as photographs have them, in a fixed order."""
    sizes = [(round(h * shortest_edge), round(w * shortest_edge)) for h, w in _ASPECTS_HW]
    return [sizes[index % len(sizes)] for index in range(count)]


def padded_batch(sizes_hw: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised images at the top left of one canvas: pixel_values (B, 3, H, W), 0 on padding, and pixel_mask
    (B, H, W) int64, 1 on image."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)
    pixel_values = torch.zeros(len(sizes_hw), 3, height, width)
    pixel_mask = torch.zeros(len(sizes_hw), height, width, dtype=torch.int64)
    for index, (h, w) in enumerate(sizes_hw):
        pixel_values[index, :, :h, :w] = smooth_noise(h, w, generator)
        pixel_mask[index, :h, :w] = 1
    return pixel_values, pixel_mask


def to(device: torch.device, structure: Any) -> Any:
    """All tensors of a structure of lists and dicts on `device`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), structure)


def smooth_noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """(3, height, width) of mean 0 and standard deviation about 1, with shapes of many sizes as photographs have."""
    image = torch.zeros(1, 3, height, width)
    for cells in (4, 16, 64, 256):
        coarse = torch.randn(1, 3, min(cells, height), min(cells, width), generator=generator)
        image += torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return image[0] / image.std()


def labels(counts: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """One dict an image: class_labels (T,) and boxes (T, 4) cxcywh in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in counts:
        classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        centres = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
        sides = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        made.append({"class_labels": classes, "boxes": torch.cat((centres, sides), dim=1)})
    return made


def photographs(count: int, height: int, width: int, seed: int = 0) -> tuple[list[Image.Image], list[dict]]:
    """RGB images, and their annotations as COCO writes them: seven boxes each, xywh in pixels."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(count):
        pixels = (smooth_noise(height, width, generator) * 50 + 128).clamp(0, 255).to(torch.uint8)
        images.append(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
        sides = rng.uniform(0.05, 0.5, (7, 2)) * (width, height)
        corners = rng.uniform(0, 1, (7, 2)) * ((width, height) - sides)
        boxes_xywh = np.concatenate((corners, sides), axis=1).round(2).tolist()
        objects = [
            {"bbox": box, "category_id": int(rng.integers(NUM_CLASSES)), "area": box[2] * box[3], "iscrowd": 0}
            for box in boxes_xywh
        ]
        annotations.append({"image_id": image_id, "annotations": objects})
    return images, annotations


# What of a layer multiplies by how much. Attention that looks somewhere, and branches smaller than what they are added
# to: else all queries would soon say the same, and nothing would be compared.
_GAINS = {"backbone": 2**0.5, "encoder_attn.v_proj": 2.0, "encoder_attn.out_proj": 2.0, "q_proj": 2.0, "k_proj": 2.0}
_GAINS |= {"out_proj": 0.5, "fc2": 0.5, "classifier": 2.0, "predictor": 2**0.5}


@torch.no_grad()
def fill_as_trained(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights and statistics from random numbers such that outputs differ from query to query and stay of the size they
    have after training. With fresh norms (means 0, variances 1), half of what is compared would be compared with
    itself."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + noise.abs()
        elif name.endswith(("running_mean", "bias")):
            value = 0.1 * noise
        elif tensor.ndim == 1:
            # the last norm of a residual branch is small after training, or sixteen branches would add up to thousands
            is_last = name.endswith("bn3.weight") or (
                name.endswith("bn2.weight") and name.replace("bn2", "bn3") not in state
            )
            value = (0.3 if is_last else 1.0) * (1 + 0.1 * noise)
        elif "embedding" in name:
            value = noise
        else:
            gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
            value = noise * gain / tensor[0].numel() ** 0.5
        tensor.copy_(value)
