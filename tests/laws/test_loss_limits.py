"""Laws 7 and 8: a finite loss or a clear error at every limit; float32 whatever the autocast."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_detr.loss import HungarianMatcher, SetCriterion, pack_targets
from tests.small_models import MODELS, images, small_model, small_segmenter, targets

NUM_QUERIES, NUM_LABELS = 9, 5
SIZES = ((64, 64), (64, 64))


def predictions(batch_size: int = 2, layers: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(layers, batch_size, NUM_QUERIES, NUM_LABELS + 1).requires_grad_()
    boxes = torch.randn(layers, batch_size, NUM_QUERIES, 4).sigmoid().detach().requires_grad_()
    return logits, boxes


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 1), (NUM_QUERIES, 2), (NUM_QUERIES + 4, 1), (40, 40)])
@pytest.mark.parametrize("training", [True, False])
@MODELS
def test_any_number_of_objects_gives_a_finite_loss_and_gradients(make, training, counts):
    model = make().train(training)
    outputs = model(images(*SIZES)[0], labels=targets(*counts, sizes_hw=SIZES))
    assert outputs.loss.isfinite()
    assert all(value.isfinite() for value in outputs.loss_dict.values())
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    if not any(counts):
        assert outputs.loss_dict["loss_bbox"] == outputs.loss_dict["loss_giou"] == 0
        assert getattr(model, "detr", model).bbox_predictor.layers[-1].weight.grad.abs().sum() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["logits", "boxes"])
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
def test_predictions_that_are_not_finite_are_a_clear_error(bad, where, counts):
    logits, boxes = (t.detach().clone() for t in predictions())
    {"logits": logits, "boxes": boxes}[where][1, 1, 4, 0] = bad
    with pytest.raises(ValueError, match=r"not finite \(decoder layer 1, image 1 of the batch, query 4.*learning rate"):
        SetCriterion()(logits, boxes, targets(*counts))


def test_a_box_without_area_gives_a_finite_loss_and_gradient():
    logits, boxes = predictions()
    labels = targets(2, 1)
    labels[0]["boxes"][0, 2:] = 0
    loss, _ = SetCriterion()(logits, boxes, labels)
    loss.backward()
    assert all(t.isfinite().all() for t in (loss, boxes.grad, logits.grad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@MODELS
def test_matching_and_losses_are_float32_under_autocast(make, dtype, monkeypatch):
    seen = []

    matcher = HungarianMatcher.__call__

    def spy(self, logits, boxes, targets):
        seen.append((logits.dtype, boxes.dtype, torch.is_autocast_enabled("cpu")))
        return matcher(self, logits, boxes, targets)

    monkeypatch.setattr(HungarianMatcher, "__call__", spy)
    model = make().train()
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images(*SIZES)[0], labels=targets(2, 3, sizes_hw=SIZES))
    assert seen == [(torch.float32, torch.float32, False)]
    assert {value.dtype for value in outputs.loss_dict.values()} == {torch.float32}
    assert outputs.loss.dtype == outputs.pred_boxes.dtype == torch.float32
    outputs.loss.backward()


def test_half_precision_predictions_lose_nothing_in_the_loss():
    logits, boxes = (t.detach().to(torch.bfloat16) for t in predictions())
    labels = targets(2, 3)
    half, _ = SetCriterion()(logits, boxes, labels)
    full, _ = SetCriterion()(logits.float(), boxes.float(), labels)
    assert torch.equal(half, full)


def test_the_assignment_is_the_cheapest_of_each_image_and_layer():
    logits, boxes = (t.detach() for t in predictions(batch_size=3))
    packed = pack_targets(targets(4, 0, 12), 3, torch.device("cpu"))
    matches = HungarianMatcher()(logits, boxes, packed)
    assert matches.query.shape == matches.target.shape == (3, 4 + NUM_QUERIES)
    start = 0
    for image, size in enumerate(packed.sizes):
        wanted = slice(start, start + size)
        for layer in range(3):
            cost = _cost_by_hand(logits[layer, image], boxes[layer, image], packed, wanted)
            rows, columns = linear_sum_assignment(cost)
            mine = (matches.target[layer] >= start) & (matches.target[layer] < start + size)
            queries = (matches.query[layer][mine] - image * NUM_QUERIES).numpy()
            objects = (matches.target[layer][mine] - start).numpy()
            assert len(set(queries)) == len(set(objects)) == min(size, NUM_QUERIES)
            assert np.isclose(cost[queries, objects].sum(), cost[rows, columns].sum(), atol=1e-4)
        start += size


def _cost_by_hand(logits, boxes, packed, wanted) -> np.ndarray:
    """(Q, T) from the formula, by plain loops."""
    probability = logits.double().softmax(-1).numpy()
    labels, targets_xyxy = packed.class_labels[wanted].numpy(), packed.boxes_cxcywh[wanted].double().numpy()
    cost = np.zeros((len(boxes), len(labels)))
    for q, box in enumerate(boxes.double().numpy()):
        for t, (label, target) in enumerate(zip(labels, targets_xyxy, strict=True)):
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
                (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2) for b in (box, target)
            )
            overlap = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
            union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
            hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
            giou = overlap / union - (hull - union) / hull
            cost[q, t] = 5 * np.abs(box - target).sum() - probability[q, label] - 2 * giou
    return cost


def test_no_query_is_compared_with_another_images_objects():
    # the objects of the other image fit every query perfectly, and are not taken
    logits, boxes = (t.detach() for t in predictions(layers=1))
    labels = targets(2, 2)
    labels[1]["boxes"] = boxes[0, 0, :2].clone()
    matches = HungarianMatcher()(logits, boxes, pack_targets(labels, 2, torch.device("cpu")))
    assert torch.equal(matches.query // NUM_QUERIES, torch.tensor([[0, 0, 1, 1]]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda labels: labels[0], TypeError, "list with one dict per image"),
        (lambda labels: "labels", TypeError, "list with one dict per image"),
        (lambda labels: torch.zeros(2, 3), TypeError, "list with one dict per image"),
        (lambda labels: [labels[0], 7], TypeError, r"labels\[1\] must be a dict"),
        (lambda labels: labels[:1], ValueError, "1 label dicts for 2 images"),
        (lambda labels: [labels[0], {"boxes": labels[1]["boxes"]}], ValueError, r"labels\[1\] has no 'class_labels'"),
        (lambda labels: [labels[0], {**labels[1], "boxes": [[0, 0, 1, 1]]}], TypeError, "must be a tensor"),
        (lambda labels: [labels[0], {**labels[1], "boxes": torch.rand(5, 4)}], ValueError, r"shape \(3, 4\)"),
        (lambda labels: [labels[0], {**labels[1], "boxes": torch.ones(3, 4).int()}], ValueError, "fractions"),
        (lambda labels: [labels[0], {**labels[1], "class_labels": torch.rand(3)}], ValueError, "whole numbers"),
        (lambda labels: _with(labels, "class_labels", 2, 5), ValueError, r"labels\[1\], object 2.*5 is outside 0 to 4"),
        (lambda labels: _with(labels, "class_labels", 0, -1), ValueError, r"labels\[1\], object 0.*-1 is outside"),
        (lambda labels: _with(labels, "boxes", 1, float("nan")), ValueError, r"labels\[1\], object 1.*fractions"),
        (lambda labels: _with(labels, "boxes", 1, -0.5), ValueError, r"labels\[1\], object 1.*negative"),
        (lambda labels: _with(labels, "boxes", 1, 320.0), ValueError, r"labels\[1\], object 1.*divide pixels"),
    ],
)
def test_labels_that_cannot_be_right_say_where_and_how_to_mend_them(change, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        model(images((64, 64), (64, 64))[0], labels=change(targets(2, 3)))


@pytest.mark.parametrize(
    ("change", "padded", "error", "message"),
    [
        (lambda label: label.pop("masks"), True, ValueError, r"labels\[1\] has no 'masks'.*DetrForObjectDetection"),
        (lambda label: label.update(masks=[[1]]), True, TypeError, r"labels\[1\]\['masks'\] must be a tensor"),
        (lambda label: label.update(masks=label["masks"].float()), True, ValueError, "whole numbers"),
        (lambda label: label.update(masks=label["masks"][:2]), True, ValueError, r"shape \(3, height, width\)"),
        (lambda label: label.update(masks=label["masks"][0]), True, ValueError, r"shape \(3, height, width\)"),
        (lambda label: label.update(masks=label["masks"].repeat(1, 2, 1)), True, ValueError, r"\(128, 64\).*within"),
        (lambda label: label.update(masks=label["masks"][:, :40]), False, ValueError, r"\(40, 64\).*no pixel_mask"),
    ],
)
def test_masks_that_cannot_be_right_say_where_and_how_to_mend_them(change, padded, error, message):
    labels = targets(2, 3, sizes_hw=SIZES)
    change(labels[1])
    pixel_values, pixel_mask = images(*SIZES)
    with pytest.raises(error, match=message):
        small_segmenter()(pixel_values, pixel_mask if padded else None, labels=labels)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "pixel_values"),
        ({"inputs_embeds": torch.zeros(1, 9, 32)}, "Masks are made of the backbone's maps"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "mask_top_k": 0}, "mask_top_k=0 must be at least 1"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "mask_threshold": 50}, "mask_threshold=50 must be a probability"),
    ],
)
def test_inputs_that_make_no_masks_are_clear_errors(inputs, message):
    with pytest.raises(ValueError, match=message):
        small_segmenter()(**inputs)


def _with(labels, key, index, value):
    labels[1][key][index] = value
    return labels


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "pixel_values"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"shape \(images, 3, height, width\)"),
        ({"pixel_values": torch.zeros(1, 1, 64, 64)}, "num_channels"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "floating-point"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": torch.ones(1, 32, 64)}, "pixel_mask"),
        ({"inputs_embeds": torch.zeros(1, 10, 32)}, "square feature map"),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "decoder_attention_mask": torch.ones(9, 9)},
            r"shape \(1, 9\) or \(1, 9, 9\), not \(9, 9\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_clear_errors(inputs, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**inputs)


@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
def test_the_loss_visits_the_host_once(monkeypatch, counts):
    visits = []
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        real = getattr(torch.Tensor, name)

        def counted(self, *arguments, _name=name, _real=real, **options):
            visits.append(_name)
            return _real(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    logits, boxes = predictions()
    loss, _ = SetCriterion()(logits, boxes, targets(*counts))
    loss.backward()
    assert visits == ["cpu"]
