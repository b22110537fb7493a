"""IoU-aware classification: what a matched query owes its class, and that nothing else changes."""

import pytest
import torch

from hf_detr.boxes import cxcywh_to_xyxy, iou
from hf_detr.loss import SetCriterion
from tests.small_models import targets

NUM_QUERIES, NUM_LABELS = 9, 5
AWARE = SetCriterion(iou_aware_classification=True)


def predictions(labels: list[dict], noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, B, Q, C + 1) and (1, B, Q, 4): query q of each image has the box of object q, moved by up to `noise`."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.full((len(labels), NUM_QUERIES, 4), 0.01, dtype=torch.float64)
    for own, label in zip(boxes, labels, strict=True):
        own[: len(label["boxes"])] = label["boxes"].double()
    boxes = boxes * (1 + noise * (2 * torch.rand(boxes.shape, generator=generator) - 1))
    logits = torch.randn(1, len(labels), NUM_QUERIES, NUM_LABELS + 1, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), boxes[None]


def test_boxes_that_fit_give_the_papers_loss():
    labels = targets(3, 2)
    aware, plain = (criterion(*predictions(labels, 0.0), labels)[1] for criterion in (AWARE, SetCriterion()))
    assert aware.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(aware[name], plain[name])


def test_a_query_owes_its_class_the_root_of_its_iou_and_the_rest_to_no_object():
    labels = targets(3, 2)
    logits, boxes = predictions(labels, 0.2)
    of_parts = AWARE(logits, boxes, labels)[1]
    total, weights = 0.0, 0.0
    for image, label in enumerate(labels):
        log_probabilities = logits[0, image].log_softmax(-1)
        for query in range(NUM_QUERIES):
            owed = torch.zeros(NUM_LABELS + 1, dtype=torch.float64)
            if query < len(label["boxes"]):
                fit = iou(cxcywh_to_xyxy(boxes[0, image, query]), cxcywh_to_xyxy(label["boxes"][query].double()))
                owed[label["class_labels"][query]] = fit.sqrt()
                owed[-1] = 0.1 * (1 - fit.sqrt())
                weights += 1
            else:
                owed[-1] = 0.1
                weights += 0.1
            total = total - (owed * log_probabilities[query]).sum()
    torch.testing.assert_close(of_parts["loss_ce"], total / weights)
    for name in ("loss_bbox", "loss_giou"):
        assert of_parts[name] == SetCriterion()(logits, boxes, labels)[1][name]


def test_the_class_of_a_box_that_fits_better_is_owed_more():
    labels = targets(1)
    scores = []
    for noise in (0.05, 0.6):
        logits, boxes = predictions(labels, noise)
        for _ in range(200):  # the logits that this box would have in the end
            (gradient,) = torch.autograd.grad(AWARE(logits, boxes, labels)[1]["loss_ce"], logits)
            logits = (logits - 20 * gradient).detach().requires_grad_()
        scores.append(logits[0, 0, 0].softmax(-1)[labels[0]["class_labels"][0]])
    assert scores[0] > scores[1]


def test_the_boxes_get_no_gradient_from_the_classes():
    labels = targets(2, 1)
    logits, boxes = predictions(labels, 0.2)
    boxes.requires_grad_()
    loss_ce = AWARE(logits, boxes, labels)[1]["loss_ce"]
    assert torch.autograd.grad(loss_ce, boxes, allow_unused=True) == (None,)


@pytest.mark.parametrize("counts", [(0, 0), (NUM_QUERIES + 4, 1)])
def test_any_number_of_objects_gives_a_finite_loss(counts):
    labels = targets(*counts)
    logits, boxes = torch.randn(2, 2, NUM_QUERIES, NUM_LABELS + 1), torch.rand(2, 2, NUM_QUERIES, 4)
    loss = AWARE(logits.requires_grad_(), boxes, labels)[0]
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
