"""A loss for every cell of the encoded feature map: which object it lies on, and that object's box.

The decoder's queries have to find the objects before the encoder learns anything from them, which is what keeps a fresh
DETR waiting. Cells have their objects from where they lie, so encoder and backbone learn from the first step on; as in
one-stage detectors (Tian et al., FCOS, 2019), beside a DETR as in Zong et al., Co-DETR, 2023. Only training has it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou
from .targets import Targets

# B images, HW cells, N objects of all images, C classes; class C is "no object"

_REACH = 0.5  # a cell lies on an object if its centre is this near to the box's, in shares of half the box's sides


@dataclass(frozen=True)
class CellPredictions:
    """Predictions of the encoder head.

    Attributes:
        logits: (B, HW, C + 1).
        boxes_cxcywh: (B, HW, 4) in [0, 1].
        centres_xy: (B or 1, HW, 2) the cells' centres in [0, 1] of the visible image, negative on padding.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    centres_xy: Tensor


@torch.no_grad()
def assign_cells(centres_xy: Tensor, targets: Targets) -> Tensor:
    """(B, HW) int64, the object that a cell lies on, or N for none.

    On an object lie the cells near its centre, and the nearest in any case; of several objects the smallest counts.
    It follows from the targets alone. Nothing is read back from the device.
    """
    num_boxes, batch_size = targets.num_boxes, len(targets.sizes)
    boxes, image = targets.boxes_cxcywh, targets.image_index
    centres_xy = centres_xy.expand(batch_size, -1, -1)
    distance = (centres_xy[image] - boxes[:, None, :2]).abs()  # (N, HW, 2)
    nearest = distance.square().sum(-1).argmin(1, keepdim=True)  # padding, at negative places, is farther
    reach = _REACH * 0.5 * boxes[:, None, 2:]
    on_object = (distance < reach).all(-1) & (centres_xy[image] >= 0).all(-1)  # (N, HW)
    on_object.scatter_(1, nearest, True)
    by_size = (boxes[:, 2] * boxes[:, 3]).argsort(stable=True)  # (N,) rank -> object
    rank = torch.empty_like(by_size)
    rank[by_size] = torch.arange(num_boxes, device=rank.device)
    claims = torch.where(on_object, rank[:, None], num_boxes)
    first = torch.full((batch_size, centres_xy.shape[1]), num_boxes, device=rank.device)
    first.scatter_reduce_(0, image[:, None].expand_as(claims), claims, "amin")
    return torch.cat((by_size, by_size.new_full((1,), num_boxes)))[first]


def encoder_loss(
    cells: CellPredictions, targets: Targets, num_boxes: Tensor | float, num_images: Tensor | float
) -> dict[str, Tensor]:
    """-> three losses of ().

    Each object counts as one, whatever the number of its cells, and so does the background of each image. `num_boxes`
    and `num_images` are those of the optimizer step, by which the sums are divided.
    """
    none = targets.num_boxes
    owner = assign_cells(cells.centres_xy, targets)  # (B, HW)
    dtype, device = cells.logits.dtype, cells.logits.device
    has_object = owner < none
    is_empty = ~has_object & (cells.centres_xy >= 0).all(-1)
    cells_of = torch.zeros(none + 1, device=device, dtype=dtype).index_add_(
        0, owner.flatten(), torch.ones(owner.numel(), device=device, dtype=dtype)
    )
    of_object = torch.where(has_object, 1 / cells_of[owner].clamp(min=1), 0.0)  # (B, HW), sums to 1 for each object
    of_background = is_empty.to(dtype) / is_empty.sum(1, keepdim=True).clamp(min=1)  # (B, HW), to 1 for each image

    labels = torch.cat((targets.class_labels, targets.class_labels.new_full((1,), cells.logits.shape[-1] - 1)))
    boxes = torch.cat((targets.boxes_cxcywh, targets.boxes_cxcywh.new_full((1, 4), 0.5))).to(dtype)[owner]
    ce = F.cross_entropy(cells.logits.flatten(0, 1), labels[owner].flatten(), reduction="none").view(owner.shape)
    l1 = (cells.boxes_cxcywh - boxes).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(cells.boxes_cxcywh), cxcywh_to_xyxy(boxes))
    return {
        "loss_ce": (ce * (of_object + of_background)).sum() / (num_boxes + num_images),
        "loss_bbox": (l1 * of_object).sum() / num_boxes,
        "loss_giou": ((1 - overlap) * of_object).sum() / num_boxes,
    }
