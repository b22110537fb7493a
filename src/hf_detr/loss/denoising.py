"""Noised copies of the targets, which the decoder learns to reconstruct (query denoising, Li et al. 2022).

A query that starts from a noised box of a known object needs no matching: its target is known from the start of the
training, when the matching still changes at every step. It teaches the decoder to move a box onto the object beside it,
which the matched queries then profit from. Only training has such copies.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh
from .targets import Targets, to_device

# L decoder layers, B images, T targets of the fullest image (at least 1), R copies of each, E = R T, C classes


@dataclass(frozen=True)
class NoisedTargets:
    """R copies of every target, image by image, copy by copy; images with fewer targets are filled up.

    Attributes:
        class_labels: (B, E) int64 in [0, C), the targets of the copies.
        boxes_cxcywh: (B, E, 4), likewise.
        noised_labels: (B, E) int64 in [0, C), what the decoder gets.
        noised_boxes_cxcywh: (B, E, 4) in [0, 1], likewise.
        is_real: (B, E) bool, False for fillers.
        copy: (E,) int64, the number of the copy, 0 to R - 1.
        copies: R.
    """

    class_labels: Tensor
    boxes_cxcywh: Tensor
    noised_labels: Tensor
    noised_boxes_cxcywh: Tensor
    is_real: Tensor
    copy: Tensor
    copies: int


@torch.no_grad()
def noise_targets(
    targets: Targets, copies: int, num_labels: int, box_noise: float, label_noise: float
) -> NoisedTargets:
    """Adds noise to `copies` copies of each target.

    The centre moves, uniformly, by up to `box_noise` of half the box's width and height, and these grow or shrink by up
    to that share; what leaves the image is cut off. With chance `label_noise` the label is replaced by a random one.
    Drawn on the device; nothing is read back.
    """
    batch_size, device = len(targets.sizes), targets.boxes_cxcywh.device
    fullest = max(1, *targets.sizes) if targets.sizes else 1
    slots = np.concatenate([np.arange(size) + image * fullest for image, size in enumerate(targets.sizes)] or [[]])
    slots = to_device(slots.astype(np.int64), device)  # (N,) each target's index among B T

    labels = torch.zeros(batch_size * fullest, dtype=torch.int64, device=device)
    labels[slots] = targets.class_labels.clamp(0, num_labels - 1)  # an invalid one is reported by the matcher
    boxes = torch.full((batch_size * fullest, 4), 0.5, dtype=torch.float32, device=device)
    boxes[slots] = targets.boxes_cxcywh
    is_real = torch.zeros(batch_size * fullest, dtype=torch.bool, device=device)
    is_real.index_fill_(0, slots, True)  # an assignment by index would copy True from the host, and wait for it

    labels, is_real = (row.view(batch_size, -1).repeat(1, copies) for row in (labels, is_real))  # (B, E)
    boxes = boxes.view(batch_size, -1, 4).repeat(1, copies, 1)
    flipped = torch.rand(labels.shape, device=device) < label_noise
    noised_labels = torch.where(flipped, torch.randint_like(labels, num_labels), labels)
    shift, growth = ((2 * torch.rand_like(boxes) - 1) * box_noise).split(2, dim=-1)
    centre, size = boxes.split(2, dim=-1)
    corners = cxcywh_to_xyxy(torch.cat((centre + 0.5 * shift * size, size * (1 + growth)), dim=-1))
    return NoisedTargets(
        class_labels=labels,
        boxes_cxcywh=boxes,
        noised_labels=noised_labels,
        noised_boxes_cxcywh=xyxy_to_cxcywh(corners.clamp(0, 1)),
        is_real=is_real,
        copy=torch.arange(copies, device=device).repeat_interleave(fullest),
        copies=copies,
    )


def denoising_losses(
    logits: Tensor, boxes_cxcywh: Tensor, noised: NoisedTargets, num_boxes: Tensor | float
) -> dict[str, Tensor]:
    """Each copy against its own target: logits (L, B, E, C + 1), boxes (L, B, E, 4) -> three losses of (L,).

    Means over the copies, `num_boxes` (of the optimizer step, as for the matched queries) times R. What fills up counts
    as 0 but stays in the graph, so that every parameter has a gradient also where no image has an object.
    """
    num_layers = len(logits)
    weight = noised.is_real.to(logits.dtype) / (num_boxes * noised.copies)  # (B, E)
    wanted = noised.class_labels.expand(num_layers, -1, -1)
    ce = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view(wanted.shape)
    l1 = (boxes_cxcywh - noised.boxes_cxcywh).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(noised.boxes_cxcywh))
    parts = {"loss_ce": ce, "loss_bbox": l1, "loss_giou": 1 - overlap}
    return {name: (part * weight).sum((1, 2)) for name, part in parts.items()}
