"""Contrastive denoising (Zhang et al., DINO, 2022), for the measurement alone: it is not in the package.

Beside each noised copy of a target stands one that is noised more, between once and twice as far, whose answer should
be "no object". `install` changes this process's hf_detr.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_detr import modeling_detr
from hf_detr.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh
from hf_detr.loss import criterion
from hf_detr.loss.denoising import NoisedTargets, noise_targets
from hf_detr.loss.targets import Targets

_NO_OBJECT = 0.1  # the weight of "no object", as for the matched queries


def install() -> None:
    modeling_detr.noise_targets = _near_and_far
    criterion.denoising_losses = _losses


@torch.no_grad()
def _near_and_far(
    targets: Targets, copies: int, num_labels: int, box_noise: float, label_noise: float
) -> NoisedTargets:
    near = noise_targets(targets, copies, num_labels, box_noise, label_noise)
    noise = torch.rand_like(near.boxes_cxcywh).add(1) * box_noise  # once to twice as far
    noise = noise * (torch.randint_like(noise, 2) * 2 - 1)
    (shift, growth), (centre, size) = noise.split(2, dim=-1), near.boxes_cxcywh.split(2, dim=-1)
    corners = cxcywh_to_xyxy(torch.cat((centre + 0.5 * shift * size, size * (1 + growth)), dim=-1))
    return replace(
        near,
        class_labels=torch.cat((near.class_labels, torch.full_like(near.class_labels, num_labels)), 1),
        boxes_cxcywh=near.boxes_cxcywh.repeat(1, 2, 1),
        noised_labels=near.noised_labels.repeat(1, 2),
        noised_boxes_cxcywh=torch.cat((near.noised_boxes_cxcywh, xyxy_to_cxcywh(corners.clamp(0, 1))), 1),
        is_real=near.is_real.repeat(1, 2),
        copy=near.copy.repeat(2),
    )


def _losses(
    logits: Tensor, boxes_cxcywh: Tensor, noised: NoisedTargets, num_boxes: Tensor | float
) -> dict[str, Tensor]:
    is_near = noised.class_labels < logits.shape[-1] - 1
    share = noised.is_real.to(logits.dtype) / (num_boxes * noised.copies)
    wanted = noised.class_labels.expand(len(logits), -1, -1)
    ce = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view(wanted.shape)
    l1 = (boxes_cxcywh - noised.boxes_cxcywh).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(noised.boxes_cxcywh))
    return {
        "loss_ce": (ce * share * torch.where(is_near, 1.0, _NO_OBJECT)).sum((1, 2)),
        "loss_bbox": (l1 * share * is_near).sum((1, 2)),
        "loss_giou": ((1 - overlap) * share * is_near).sum((1, 2)),
    }
