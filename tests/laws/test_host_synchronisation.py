"""A training step makes the host wait for the device at most twice, a prediction as well: counted on every machine.

What counts as a wait, and what only a real GPU can count, is in benchmarks/host_visits.py.
"""

import pytest
import torch
import transformers
from benchmarks.host_visits import PRETENDED, HostVisits

from hf_detr import DetrImageProcessor
from tests.small_models import images, small_model, small_segmenter, targets

AT_MOST = 2
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def on_device(labels):
    return [{name: value.to(PRETENDED) for name, value in label.items()} for label in labels]


def train_step(model, *counts):
    """Forward, matching, loss and backward of a batch of mixed sizes -> visits, and the loss."""
    sizes_hw = [(64, 64), (48, 64), (64, 40)][: len(counts)]
    pixels, mask = images(*sizes_hw)
    with HostVisits() as counter:
        model.train().to(PRETENDED)
        inputs = {"pixel_values": pixels.to(PRETENDED), "pixel_mask": mask.to(PRETENDED)}
        labels = on_device(targets(*counts, sizes_hw=sizes_hw))
        counter.reset()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        visits = counter.visits.copy()
        assert counter.operators > 100
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        return visits, loss.item(), torch.stack([gradient.norm() for gradient in gradients]).cpu().norm()


@pytest.mark.parametrize("counts", [(3, 2), (0, 0), (3, 0, 12)], ids=["objects", "none", "more than queries"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auxiliary_loss": False},
        {"denoising_queries": 2, "query_groups": 2, "encoder_auxiliary_loss": True, "iou_aware_classification": True},
    ],
    ids=["paper", "last layer alone", "all training-only parts"],
)
def test_a_training_step_visits_the_host_at_most_twice(changes, counts):
    visits, *_ = train_step(small_model(dropout=0.1, **changes), *counts)
    assert visits.total() <= AT_MOST, visits


@pytest.mark.parametrize("resolution", ["image", "mask", "points"])
def test_a_training_step_with_masks_visits_the_host_at_most_twice(resolution):
    visits, *_ = train_step(small_segmenter(mask_loss_resolution=resolution), 3, 0, 12)
    assert visits.total() <= AT_MOST, visits


@pytest.mark.parametrize("keep", [{}, {"mask_threshold": 0.3}, {"mask_top_k": 3}], ids=str)
def test_choosing_masks_visits_the_host_once(keep):
    model, pixels = small_segmenter(), images((64, 64), (64, 64))[0]
    with HostVisits() as counter, torch.no_grad():
        model.to(PRETENDED)
        pixels = pixels.to(PRETENDED)
        counter.reset()
        model(pixels, **keep)
        assert counter.visits.total() == bool(keep), counter.visits


def test_inference_with_post_processing_visits_the_host_at_most_twice():
    model, processor = small_model(), DetrImageProcessor()
    pixels, mask = images((64, 64), (48, 64), (64, 40))
    with HostVisits() as counter, torch.no_grad():
        model.to(PRETENDED)
        pixels, mask = pixels.to(PRETENDED), mask.to(PRETENDED)
        counter.reset()
        outputs = model(pixels, mask)
        assert not counter.visits  # the model alone never needs the host
        sizes_hw = [(480, 640), (360, 640), (480, 300)]
        results = processor.post_process_object_detection(outputs, threshold=0.1, target_sizes=sizes_hw)
        assert counter.visits.total() <= AT_MOST, counter.visits
    assert len(results) == 3


def test_the_pretended_device_computes_what_the_processor_computes():
    _, loss, norm = train_step(small_model(**NO_DROPOUT), 3, 2)
    model = small_model(**NO_DROPOUT).train()
    pixels, mask = images((64, 64), (48, 64))
    expected = model(pixels, mask, labels=targets(3, 2)).loss
    expected.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert norm.item() == pytest.approx(torch.stack([g.norm() for g in gradients]).norm().item(), rel=1e-3)


def test_stock_is_counted_too_and_is_over_the_limit(tmp_path):
    small_model().save_pretrained(tmp_path)
    stock = transformers.DetrForObjectDetection.from_pretrained(tmp_path, auxiliary_loss=True)
    visits, *_ = train_step(stock, 3, 2)
    assert visits.total() > AT_MOST


@pytest.mark.parametrize(
    "visit",
    [
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: bool(x.sum()),
        lambda x: torch.zeros(4).copy_(x),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=PRETENDED)),
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.allclose(x, x + 1),
        lambda x: x.to(torch.int64).bincount(),
    ],
)
def test_whatever_needs_a_value_on_the_host_is_a_visit(visit):
    with HostVisits() as counter:
        x = torch.arange(4.0).to(PRETENDED)
        counter.reset()
        visit(x)
        assert counter.visits.total() == 1


@pytest.mark.parametrize(
    "work",
    [
        lambda x: (x * 2).sum().softmax(0),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.masked_fill(x > 0, 1),
        lambda x: x + torch.tensor([1, 2, 3, 4], device=PRETENDED),
        lambda x: x + torch.ones(4).to(x.device),
        lambda x: x.view(2, 2).t()[0].add_(1),
        lambda x: x.repeat_interleave(2),
    ],
)
def test_work_of_the_device_alone_is_no_visit(work):
    with HostVisits() as counter:
        x = torch.arange(4.0).to(PRETENDED)
        counter.reset()
        work(x)
        assert not counter.visits
        assert counter.operators


def test_a_step_that_reads_its_losses_one_by_one_is_over_the_limit():
    model = small_model()
    plain, *_ = train_step(model, 3, 2)
    model.class_labels_classifier.register_forward_hook(
        lambda module, args, out: print(out.mean().item(), out[0].cpu())
    )
    watched, *_ = train_step(model, 3, 2)
    assert watched.total() >= plain.total() + 2 > AT_MOST


def test_host_and_device_do_not_mix():
    with HostVisits(), pytest.raises(RuntimeError, match="on the device and on the host"):
        torch.arange(4.0).to(PRETENDED) + torch.ones(4)
