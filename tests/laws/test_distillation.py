"""The loss of what a teacher sees."""

import pytest
import torch

from hf_detr.loss import CellPredictions, SetCriterion, pack_targets
from tests.small_models import images, small_model, small_segmenter, targets

LAYERS, QUERIES, CLASSES = 2, 6, 5


def predictions(*, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4), all layers alike."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, QUERIES, CLASSES + 1, generator=generator)
    boxes = 0.2 + 0.4 * torch.rand(batch, QUERIES, 4, generator=generator)
    return logits.expand(LAYERS, -1, -1, -1).clone(), boxes.expand(LAYERS, -1, -1, -1).clone()


def taught(labels: list[dict], logits: torch.Tensor, boxes: torch.Tensor) -> list[dict]:
    """Labels with a teacher that predicts these, in another order of its queries."""
    order = torch.arange(logits.shape[2]).flip(0)
    seen = zip(logits[-1, :, order].softmax(-1), boxes[-1, :, order], strict=True)
    return [
        {**label, "teacher_probabilities": probabilities, "teacher_boxes": its_boxes}
        for label, (probabilities, its_boxes) in zip(labels, seen, strict=True)
    ]


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn_from_it():
    logits, boxes = predictions()
    labels = targets(2, 0)
    plain, parts = SetCriterion()(logits, boxes, labels)
    loss, with_teacher = SetCriterion()(logits, boxes, taught(labels, logits, boxes))
    assert with_teacher.pop("loss_teacher").item() == pytest.approx(0, abs=1e-4)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-4)
    assert with_teacher.keys() == parts.keys()
    assert all(torch.equal(with_teacher[name], part) for name, part in parts.items())


def test_the_less_sure_a_teacher_is_of_an_object_the_less_it_counts():
    logits, boxes = predictions()
    labels = targets(2, 1)
    losses = []
    for sure in (0.0, 0.25, 0.5):
        probabilities = torch.zeros(1, CLASSES + 1)
        probabilities[0, 1], probabilities[0, -1] = sure, 1 - sure
        seen = {"teacher_probabilities": probabilities, "teacher_boxes": torch.tensor([[0.1, 0.1, 0.1, 0.1]])}
        losses.append(SetCriterion()(logits, boxes, [{**labels[0], **seen}, labels[1]])[1]["loss_teacher"].item())
    assert losses[0] == 0
    assert 0 < losses[1] < losses[2]


def test_losses_of_two_passes_with_the_counts_of_their_step_add_up_to_that_of_one_pass():
    logits, boxes = predictions(batch=4)
    others = predictions(batch=4, seed=1)
    labels = taught(targets(3, 0, 1, 2), *others)
    whole = SetCriterion()(logits, boxes, labels)[1]["loss_teacher"]
    halves = [
        SetCriterion()(logits[:, half], boxes[:, half], labels[half], num_items_in_batch=6)[1]["loss_teacher"]
        for half in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(halves), whole)


def test_cells_on_an_object_of_the_teacher_learn_it_and_all_others_nothing():
    x, y = torch.meshgrid(torch.arange(4) / 4 + 0.125, torch.arange(4) / 4 + 0.125, indexing="xy")
    centres = torch.stack((x, y), -1).view(1, 16, 2)
    cell_logits = torch.zeros(1, 16, CLASSES + 1, requires_grad=True)
    cell_boxes = torch.full((1, 16, 4), 0.3, requires_grad=True)
    logits, boxes = predictions(batch=1)
    cells = CellPredictions(cell_logits, cell_boxes, centres)
    [label] = targets(0)
    probabilities = torch.tensor([[0.0, 0.9, 0.0, 0.0, 0.0, 0.1]])
    # on cell 5 alone, the second of the second row
    seen = {"teacher_probabilities": probabilities, "teacher_boxes": torch.tensor([[0.375, 0.375, 0.2, 0.2]])}
    packed = pack_targets([{**label, **seen}], 1, logits.device)
    SetCriterion().losses(logits, boxes, packed, cells=cells).parts["loss_teacher"].backward()
    learns = cell_boxes.grad.abs().sum(-1)[0] > 0
    assert learns.nonzero().flatten().tolist() == [5]
    assert cell_logits.grad[0, 5, 1] < 0
    assert not cell_logits.grad[0, 6].any()


def test_without_a_teacher_the_loss_is_the_same_to_the_bit():
    model = small_model(encoder_auxiliary_loss=True).train()
    pixels, _ = images((64, 64), (64, 64))
    labels = targets(2, 3)
    torch.manual_seed(0)
    plain = model(pixels, labels=labels)
    assert "loss_teacher" not in plain.loss_dict
    nothing = {"teacher_probabilities": torch.zeros(0, 6), "teacher_boxes": torch.zeros(0, 4)}
    torch.manual_seed(0)
    silent = model(pixels, labels=[{**label, **nothing} for label in labels])
    assert silent.loss_dict["loss_teacher"].item() == 0
    assert torch.equal(silent.loss, plain.loss)


def test_a_teacher_that_saw_only_some_of_the_images_is_no_teacher_of_the_others():
    logits, boxes = predictions()
    labels = targets(2, 2)
    [seen, _] = taught(labels, *predictions(seed=1))
    together = SetCriterion()(logits, boxes, [seen, labels[1]])[1]["loss_teacher"]
    alone = SetCriterion()(logits[:, :1], boxes[:, :1], [seen], num_items_in_batch=4)[1]["loss_teacher"]
    torch.testing.assert_close(together, alone)


def test_a_model_with_masks_learns_of_a_teacher_too():
    sizes_hw = ((64, 64), (64, 48))
    model = small_segmenter()
    pixels, mask = images(*sizes_hw)
    labels = targets(2, 1, sizes_hw=sizes_hw)
    plain = model(pixels, pixel_mask=mask, labels=labels)
    taught_labels = taught(labels, *predictions())
    outputs = model(pixels, pixel_mask=mask, labels=taught_labels)
    assert outputs.loss_dict["loss_teacher"] > 0
    torch.testing.assert_close(outputs.loss - plain.loss, outputs.loss_dict["loss_teacher"], rtol=1e-3, atol=1e-3)
