"""Four numbers: box formats, areas, IoU and generalised IoU, for torch tensors of any leading shape.

Formats, always on the last axis: `xyxy` (left, top, right, bottom), `xywh` (left, top, width, height: COCO's),
`cxcywh` (centre, width, height: the model's). Units are the caller's; nothing here rounds or clips.
"""

import torch
from torch import Tensor

# Denominators below this count as empty: 0 / 0 becomes 0, with a finite gradient. A box of a millionth of the image in
# each direction has this area, so no quotient of real boxes changes.
_NO_AREA = 1e-12


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners."""
    centre, half_size = boxes_cxcywh[..., :2], 0.5 * boxes_cxcywh[..., 2:]
    return torch.cat((centre - half_size, centre + half_size), dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """(..., 4) top-left and size (COCO) -> (..., 4) corners."""
    top_left, size = boxes_xywh[..., :2], boxes_xywh[..., 2:]
    return torch.cat((top_left, top_left + size), dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) top-left and size (COCO)."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat((top_left, bottom_right - top_left), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners -> (...) area, in squared units; negative for one inverted side."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def giou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes, (..., 4) x (..., 4) -> (...), in [-1, 1]; the leading axes broadcast.

    Rezatofighi et al. 2019. A box of no area is finite: with itself its union and its hull are both empty, and the
    value is then 0. NaN coordinates give NaN.
    """
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    other_left, other_top, other_right, other_bottom = others_xyxy.unbind(-1)
    # one coordinate at a time: no (..., 2) temporaries, which halves the memory traffic of a big pairwise table
    overlap_w = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    overlap_h = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    hull_w = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_h = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)

    overlap = overlap_w * overlap_h
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top) - overlap
    hull = hull_w * hull_h
    return overlap / union.clamp(min=_NO_AREA) - (hull - union) / hull.clamp(min=_NO_AREA)


def iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """IoU of corresponding boxes, (..., 4) x (..., 4) -> (...), in [0, 1], 0 where both have no area; the leading axes
    broadcast."""
    top_left = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    bottom_right = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = box_area(boxes_xyxy) + box_area(others_xyxy) - overlap
    return overlap / union.clamp(min=_NO_AREA)


def pairwise_giou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Generalised IoU of every pair, (..., N, 4) x (..., M, 4) -> (..., N, M), in [-1, 1]; see `giou`."""
    return giou(boxes_xyxy[..., :, None, :], others_xyxy[..., None, :, :])


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """IoU of every pair, (..., N, 4) x (..., M, 4) -> (..., N, M), in [0, 1]; 0 where both have no area."""
    return iou(boxes_xyxy[..., :, None, :], others_xyxy[..., None, :, :])
