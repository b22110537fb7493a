"""What a detector looked at in one image, and which of its layers decided: recorded in a call of its own."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hf_detr.boxes import cxcywh_to_xyxy, iou

# L decoder layers, Q queries, C classes, H x W cells of the feature map that lie on the image


@dataclass
class Recording:
    """What one image did inside the model; float32 on the host. Attention is the mean over heads.

    Attributes:
        logits: (L, Q, C + 1) class scores after each decoder layer before the softmax; the last class is "no object".
        boxes_cxcywh: (L, Q, 4) boxes after each decoder layer, in [0, 1] of the visible image.
        cross_attention: (L, Q, H, W) how much each query took from each cell.
        encoder_attention: (H, W, H, W) how much each cell took from each cell in the last encoder layer; None where
            the model has no encoder layer.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    cross_attention: Tensor
    encoder_attention: Tensor | None


class Decisions(NamedTuple):
    """The first decoder layer, counted from 1, from which on something stays as it is in the end: (Q,) int64 each."""

    label: Tensor  # the class, or that there is none
    box_50: Tensor  # the box, IoU >= 0.5 with the last one
    box_75: Tensor


@torch.no_grad()
def record_attention(model: nn.Module, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Recording:
    """Runs a `DetrForObjectDetection`, or the detector of a `DetrForSegmentation`, on one image (1, C, height, width)
    and keeps what happened inside.

    The attention is written out for this call alone, whatever implementation the model has; its outputs are the same
    within rounding, and it is left as it was, in the mode that it was in. Cells on padding, where `pixel_mask`
    (1, height, width) is 0, are left out. Raises ValueError for more than one image. It needs the memory of every
    layer's attention: (layers x heads x cells x cells) numbers.
    """
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(f"expected one image (1, C, height, width), got {tuple(pixel_values.shape)}; give one a call.")
    model = getattr(model, "detr", model)
    sizes_hw: list[tuple[int, int]] = []
    hook = model.model.input_projection.register_forward_hook(
        lambda _module, _inputs, projected: sizes_hw.append(tuple(projected.shape[-2:]))
    )
    was_training = model.training
    model.eval()
    try:
        outputs = model(
            pixel_values, pixel_mask=pixel_mask, output_attentions=True, output_hidden_states=True, return_dict=True
        )
        # the next layer reads a state as it is; the heads read it normed, as the last one is already
        *before, last = outputs.decoder_hidden_states[1:]
        states = torch.stack([*map(model.model.decoder.layernorm, before), last])[:, 0]  # (L, Q, D)
        logits, boxes_cxcywh = model.class_labels_classifier(states), model.bbox_predictor(states).sigmoid()
    finally:
        hook.remove()
        model.train(was_training)
    [(height, width)] = sizes_hw
    rows, columns = height, width
    if pixel_mask is not None:
        on_image = F.interpolate(pixel_mask[None].float(), size=(height, width))[0, 0].bool()  # as the model does
        rows, columns = int(on_image.any(1).sum()), int(on_image.any(0).sum())
    cross = torch.stack([layer[0].float().mean(0) for layer in outputs.cross_attentions])
    cross = cross.unflatten(-1, (height, width))[..., :rows, :columns]
    encoder = None
    if outputs.encoder_attentions:
        last_layer = outputs.encoder_attentions[-1][0].float().mean(0)
        encoder = last_layer.unflatten(-1, (height, width)).unflatten(0, (height, width))
        encoder = encoder[:rows, :columns, :rows, :columns].cpu()
    return Recording(logits.float().cpu(), boxes_cxcywh.float().cpu(), cross.cpu(), encoder)


def attention_on_image(attention: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Attention over cells (H, W) -> over the pixels of an image (height, width), in [0, 1] of the greatest of a cell.

    The cells fill the image, as for the model's positions; between their centres it is interpolated smoothly. No
    attention at all, or none that is finite, is 0 everywhere.
    """
    greatest = attention.max()
    if not (greatest.isfinite() and greatest > 0):
        return torch.zeros(size_wh[::-1])
    cells = Image.fromarray((attention / greatest).numpy(force=True))
    # it overshoots beside a cell that differs much from the next
    return torch.from_numpy(np.array(cells.resize(size_wh, Image.Resampling.BICUBIC))).clamp(0, 1)


def attention_from_point(recording: Recording, x: float, y: float) -> Tensor:
    """What the encoder's cell at a point took from every cell, (H, W). `x`, `y`: in [0, 1] of the visible image.

    Raises ValueError for a point outside of it, and where there is no encoder layer.
    """
    if recording.encoder_attention is None:
        raise ValueError("the model has no encoder layer, so no attention from a point; choose a query's instead.")
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"the point ({x:g}, {y:g}) is not in the image; give both in [0, 1] of its width and height.")
    height, width = recording.encoder_attention.shape[:2]
    return recording.encoder_attention[min(int(y * height), height - 1), min(int(x * width), width - 1)]


def layer_answers(logits: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """(..., C + 1) -> the best class and its score; the class is -1 where the score is not above the threshold."""
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    return labels.where(scores > threshold, -1), scores


def deciding_layers(recording: Recording, threshold: float = 0.5) -> Decisions:
    """Which layer decided, for every query. A model that was trained without auxiliary losses has learnt to answer
    after its last layer alone."""
    labels, _ = layer_answers(recording.logits, threshold)
    boxes_xyxy = cxcywh_to_xyxy(recording.boxes_cxcywh)
    overlaps = iou(boxes_xyxy, boxes_xyxy[-1:])
    return Decisions(_stays(labels == labels[-1]), _stays(overlaps >= 0.5), _stays(overlaps >= 0.75))


def _stays(same: Tensor) -> Tensor:
    """(L, Q) whether it is as in the last layer -> (Q,) the first layer, from 1, from which on it always is."""
    earlier = same[:-1].flip(0).long().cumprod(0).sum(0)  # layers before the last, going back, that agree without gap
    return len(same) - earlier
