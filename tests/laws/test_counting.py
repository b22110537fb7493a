"""Law 6: two processes, or several micro-batches, are one big batch (dropout off), for boxes and masks alike."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import in_two_processes
from tests.small_models import images, small_segmenter, targets

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
COUNTS = (3, 1, 0, 7)  # objects of the four images: processes and micro-batches have unlike numbers of them
SIZES = [(64, 64)] * 4


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def one_batch():
    model = small_segmenter(**NO_DROPOUT).double().train()
    outputs = model(images(*SIZES)[0].double(), labels=targets(*COUNTS, sizes_hw=SIZES))
    outputs.loss.backward()
    return outputs, flat_gradient(model)


def _own_batch(rank: int, folder: Path) -> None:
    """Leaves the losses of each process in `folder`, and the gradient."""
    dist.init_process_group("gloo")
    model = small_segmenter(**NO_DROPOUT).double().train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    own = slice(2 * rank, 2 * rank + 2)
    outputs = parallel(images(*SIZES)[0][own].double(), labels=targets(*COUNTS, sizes_hw=SIZES)[own])
    outputs.loss.backward()  # averages the gradients
    losses = {name: value.item() for name, value in outputs.loss_dict.items()}
    if rank == 0:
        torch.save(flat_gradient(model), folder / "gradient.pt")
    (folder / f"{rank}.json").write_text(json.dumps({"loss": outputs.loss.item(), **losses}))


def test_two_processes_are_one_process_with_both_batches(tmp_path):
    in_two_processes(_own_batch, tmp_path)
    whole, gradient = one_batch()
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name, value in {"loss": whole.loss, **whole.loss_dict}.items():
        if "error" not in name:  # only looked at, each process its own
            assert sum(rank[name] for rank in ranks) / 2 == pytest.approx(value.item(), rel=1e-5), name
    assert torch.allclose(torch.load(tmp_path / "gradient.pt"), gradient, atol=1e-7, rtol=1e-4)


def test_accumulated_micro_batches_are_one_batch():
    whole, gradient = one_batch()
    model = small_segmenter(**NO_DROPOUT).double().train()
    pixel_values, labels, total = images(*SIZES)[0].double(), targets(*COUNTS, sizes_hw=SIZES), 0.0
    for i in range(4):
        outputs = model(
            pixel_values[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=sum(COUNTS), num_images_in_batch=4
        )
        outputs.loss.backward()
        total += outputs.loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)
    assert torch.allclose(flat_gradient(model), gradient, atol=1e-7, rtol=1e-4)


def test_micro_batches_with_more_objects_than_queries_are_one_batch():
    sizes = (12, 1, 30, 2)  # of 9 queries an image
    model = small_segmenter(**NO_DROPOUT).double().train()
    pixel_values, labels = images(*SIZES)[0].double(), targets(*sizes, sizes_hw=SIZES)
    whole = model(pixel_values, labels=labels).loss
    matched = sum(min(size, model.config.num_queries) for size in sizes)
    counts = {"num_items_in_batch": sum(sizes), "num_images_in_batch": 4, "num_matched_in_batch": matched}
    parts = [model(pixel_values[i : i + 1], labels=labels[i : i + 1], **counts).loss for i in range(4)]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-9)


def test_num_items_in_batch_counts_boxes():
    model = small_segmenter(**NO_DROPOUT)
    inputs = {"pixel_values": images((64, 64))[0], "labels": targets(3, sizes_hw=SIZES[:1])}
    with torch.no_grad():
        plain, scaled = model(**inputs), model(**inputs, num_items_in_batch=torch.tensor(12))
    for name in ("loss_bbox", "loss_giou", "loss_ce", "loss_mask", "loss_dice"):
        assert scaled.loss_dict[name].item() == pytest.approx(plain.loss_dict[name].item() / 4, rel=1e-5), name


def test_class_and_box_losses_are_divided_by_counts_alone():
    # what is divided by does not depend on the predictions: twice the same image is the same loss
    model = small_segmenter(**NO_DROPOUT)
    pixel_values, labels = images((64, 64))[0], targets(3, sizes_hw=SIZES[:1])
    with torch.no_grad():
        once = model(pixel_values, labels=labels)
        twice = model(pixel_values.repeat(2, 1, 1, 1), labels=labels * 2)
    assert twice.loss.item() == pytest.approx(once.loss.item(), rel=1e-5)
