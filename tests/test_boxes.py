"""boxes: formats and overlaps, against torchvision."""

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou

from hf_detr import boxes


def random_xyxy(*shape: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, dtype=torch.float64).sort(dim=-2).values
    return corners.flatten(-2)


@pytest.mark.parametrize(
    ("there", "back"),
    [(boxes.xyxy_to_cxcywh, boxes.cxcywh_to_xyxy), (boxes.xyxy_to_xywh, boxes.xywh_to_xyxy)],
)
def test_formats_turn_into_each_other(there, back):
    corners = random_xyxy(3, 7)
    assert torch.allclose(back(there(corners)), corners)
    assert there(corners[:0]).shape == (0, 7, 4)


def test_formats_by_hand():
    box = torch.tensor([2.0, 4.0, 8.0, 10.0])
    assert boxes.xyxy_to_cxcywh(box).tolist() == [5, 7, 6, 6]
    assert boxes.xyxy_to_xywh(box).tolist() == [2, 4, 6, 6]
    assert boxes.box_area(box) == 36


def test_overlaps_equal_torchvisions():
    some, others = random_xyxy(20), random_xyxy(30)
    assert torch.allclose(boxes.pairwise_giou(some, others), generalized_box_iou(some, others), atol=1e-9)
    assert torch.allclose(boxes.pairwise_iou(some, others), box_iou(some, others), atol=1e-9)
    assert torch.allclose(boxes.giou(some, others[:20]), generalized_box_iou(some, others[:20]).diagonal(), atol=1e-9)


def test_pairs_keep_leading_axes():
    some, others = random_xyxy(2, 5), random_xyxy(2, 3)
    together = boxes.pairwise_giou(some, others)
    assert together.shape == (2, 5, 3)
    assert torch.equal(together[1], boxes.pairwise_giou(some[1], others[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_without_area_are_finite_with_finite_gradients(dtype):
    points = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.1, 0.2, 0.9], [0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    points.requires_grad_()
    values = boxes.pairwise_giou(points, points.detach())
    values.sum().backward()
    assert values.isfinite().all()
    assert (values.abs() <= 1).all()
    assert points.grad.isfinite().all()
