"""One call of inference, of a training step, or of the loss, at any size: what growth and profiles look at."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from contestants import ours, stock, training_step, write_checkpoint
from hf_detr.loss import detection_loss
from inputs import NUM_CLASSES, labels
from inputs import batch as images

_LAYERS = 6


def make_works(
    folder: Path,
    device: torch.device,
    package: str,
    quick: bool,
    bf16: bool,
    names: list[str],
    *,
    batch: int,
    height: int,
    width: int,
    objects: int,
    queries: int,
) -> dict[str, Callable[[], object]]:
    """`names` of "inference", "training" (AdamW included) and "loss" (alone, backward included) -> callables.

    `folder` is where the weights are written; `package` is "ours" or "stock". All models share the weights of their
    number of queries.
    """
    targets = [{k: v.to(device) for k, v in label.items()} for label in labels([objects] * batch)]
    build = {"ours": ours, "stock": stock}[package]
    checkpoint = folder / f"queries_{queries}"
    if not checkpoint.exists() and names != ["loss"]:
        write_checkpoint(checkpoint, small=quick, **({} if quick else {"num_queries": queries}))
    pixels = None if names == ["loss"] else images(batch, height, width).to(device)

    def inference() -> Callable[[], object]:
        model = build(checkpoint, device).eval()

        def work():
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return model(pixel_values=pixels)

        return work

    def training() -> Callable[[], object]:
        model = build(checkpoint, device, auxiliary_loss=True)

        def loss_of() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return model(pixel_values=pixels, labels=targets).loss

        return training_step(model, loss_of)

    def loss() -> Callable[[], object]:
        generator = torch.Generator().manual_seed(0)
        shape = (_LAYERS, batch, queries)
        logits = torch.randn(*shape, NUM_CLASSES + 1, generator=generator).to(device).requires_grad_()
        boxes = (0.1 + 0.4 * torch.rand(*shape, 4, generator=generator)).to(device).requires_grad_()
        return loss_work(package, logits, boxes, targets)

    makers = {"inference": inference, "training": training, "loss": loss}
    return {name: makers[name]() for name in names}


def loss_work(package: str, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Callable[[], Tensor]:
    """Loss of (L, B, Q, C + 1) logits and (L, B, Q, 4) boxes, with the gradients of both; of "ours" or "stock"."""
    config = SimpleNamespace(
        class_cost=1,
        bbox_cost=5,
        giou_cost=2,
        num_labels=NUM_CLASSES,
        eos_coefficient=0.1,
        auxiliary_loss=True,
        bbox_loss_coefficient=5,
        giou_loss_coefficient=2,
        decoder_layers=len(logits),
    )

    def work() -> Tensor:
        logits.grad = boxes.grad = None
        if package == "ours":
            loss, _ = detection_loss(logits, boxes, targets)
        else:
            loss, *_ = ForObjectDetectionLoss(logits[-1], targets, logits.device, boxes[-1], config, logits, boxes)
        loss.backward()
        return loss

    return work
