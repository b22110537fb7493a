"""What a teacher sees, as further targets: soft ones, with a box and a distribution over the classes each.

A query of the teacher that is sure of an object with probability w counts as w annotated objects. In every decoder
layer a query of the student learns its class distribution and box: that of the same number, where the teacher has as
many learned queries, which also spares the student to find out which query is for what; else that which fits best, as
for annotated objects and apart from these (fixed and adaptive matching of Chen et al., D3ETR, 2022). So do the cells of
the encoder on which its boxes lie. Nothing of the teacher is needed but its predictions, so any architecture will do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou
from .encoder_loss import CellPredictions, assign_cells
from .matcher import HungarianMatcher, Matches
from .targets import SoftTargets

# L decoder layers, B images, Q queries, S soft targets of all images, M matches of one layer, HW cells, C classes;
# class C is "no object"


def distillation_losses(
    logits: Tensor, boxes_cxcywh: Tensor, soft: SoftTargets, matcher: HungarianMatcher, num_boxes: Tensor | float
) -> dict[str, Tensor]:
    """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4) against what the teacher saw -> three losses of (L,).

    Sums over its objects, by weight, divided by the number of annotated ones, `num_boxes` of the optimizer step.
    """
    num_layers, _, num_queries, _ = logits.shape
    if soft.queries is None:
        matches = matcher(logits, boxes_cxcywh, soft.objects)
    else:
        query = soft.objects.image_index * num_queries + soft.queries
        target = torch.arange(len(query), device=query.device)
        matches = Matches(query.expand(num_layers, -1), target.expand(num_layers, -1))
    index = matches.query[..., None]
    of_pairs = [
        values.flatten(1, 2).gather(1, index.expand(-1, -1, values.shape[-1])) for values in (logits, boxes_cxcywh)
    ]
    weights = soft.weights[matches.target] / num_boxes  # (L, M)
    parts = _compare(*of_pairs, soft.probabilities[matches.target], soft.objects.boxes_cxcywh[matches.target])
    return {name: (part * weights).sum(1) for name, part in parts.items()}


def cell_distillation_losses(cells: CellPredictions, soft: SoftTargets, num_boxes: Tensor | float) -> dict[str, Tensor]:
    """The encoder's cells against the teacher's object that they lie on -> three losses of ().

    Each object counts by its weight, whatever the number of its cells; cells on none count nothing: of them the
    annotations tell.
    """
    count = soft.objects.num_boxes
    owner = assign_cells(cells.centres_xy, soft.objects)  # (B, HW), S for none
    cells_of = torch.zeros(count + 1, device=owner.device).index_add_(
        0, owner.flatten(), torch.ones(owner.numel(), device=owner.device)
    )
    weights = F.pad(soft.weights, (0, 1)) / (cells_of.clamp(min=1) * num_boxes)  # (S + 1,), the last 0
    probabilities = F.pad(soft.probabilities, (0, 0, 0, 1), value=1 / soft.probabilities.shape[-1])
    boxes = F.pad(soft.objects.boxes_cxcywh, (0, 0, 0, 1), value=0.5)
    parts = _compare(cells.logits.float(), cells.boxes_cxcywh.float(), probabilities[owner], boxes[owner])
    return {name: (part * weights[owner]).sum() for name, part in parts.items()}


def _compare(logits: Tensor, boxes_cxcywh: Tensor, probabilities: Tensor, wanted_cxcywh: Tensor) -> dict[str, Tensor]:
    """(..., C + 1) and (..., 4) against the same -> three losses of (...): the divergence from the teacher's classes,
    which is 0 where they are the same, and those of boxes."""
    divergence = F.kl_div(logits.log_softmax(-1), probabilities, reduction="none").sum(-1)
    overlap = giou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(wanted_cxcywh))
    return {
        "loss_ce": divergence,
        "loss_bbox": (boxes_cxcywh - wanted_cxcywh).abs().sum(-1),
        "loss_giou": 1 - overlap,
    }
