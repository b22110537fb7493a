"""The model's outputs -> detections, with one copy from the device for the whole batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .boxes import cxcywh_to_xyxy


@torch.no_grad()
def detections_from_outputs(
    outputs: Any,
    threshold: float,
    target_sizes: Tensor | Sequence[Sequence[int]] | None,
    top_k: int | None,
    class_thresholds: Mapping[int, float] | Sequence[float] | None,
    nms_iou_threshold: float | None,
) -> list[dict[str, Tensor]]:
    """See `DetrImageProcessor.post_process_object_detection`."""
    # B images, Q queries, C classes and one more for "no object"
    logits, boxes_cxcywh = outputs.logits, outputs.pred_boxes
    num_images, num_classes = logits.shape[0], logits.shape[-1] - 1
    thresholds = _thresholds(threshold, class_thresholds, num_classes)  # (C,)
    sizes_hw = None if target_sizes is None else _sizes_hw(target_sizes, num_images)  # (B, 2)
    if top_k is not None and (isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k={top_k!r}: expected 1 or more detections an image, or None for all.")
    if nms_iou_threshold is not None and not 0 <= nms_iou_threshold <= 1:
        raise ValueError(f"nms_iou_threshold={nms_iou_threshold!r}: expected an IoU in [0, 1], or None for no NMS.")

    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh.float())  # (B, Q, 4)
    if sizes_hw is not None and sizes_hw.device == boxes_xyxy.device:
        boxes_xyxy = _to_pixels(boxes_xyxy, sizes_hw)
    # labels ride along as float32, exact below 2**24
    packed = torch.cat((scores[..., None], labels[..., None].float(), boxes_xyxy), dim=-1).cpu()  # the one copy
    scores, labels, boxes_xyxy = packed[..., 0], packed[..., 1].long(), packed[..., 2:]
    if sizes_hw is not None and sizes_hw.device != outputs.pred_boxes.device:
        boxes_xyxy = _to_pixels(boxes_xyxy, sizes_hw)

    keep = scores > thresholds[labels]
    return [
        _select(s[k], c[k], b[k], top_k, nms_iou_threshold)
        for s, c, b, k in zip(scores, labels, boxes_xyxy, keep, strict=True)
    ]


def _select(
    scores: Tensor, labels: Tensor, boxes_xyxy: Tensor, top_k: int | None, nms_iou_threshold: float | None
) -> dict[str, Tensor]:
    chosen = torch.arange(len(scores))  # in the order of the queries, as stock
    if nms_iou_threshold is not None:
        chosen = batched_nms(boxes_xyxy, scores, labels, nms_iou_threshold).sort().values
    if top_k is not None:
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)[:top_k]]
    return {"scores": scores[chosen], "labels": labels[chosen], "boxes": boxes_xyxy[chosen]}


def _to_pixels(boxes_xyxy: Tensor, sizes_hw: Tensor) -> Tensor:
    return boxes_xyxy * sizes_hw.flip(-1).repeat(1, 2)[:, None]  # (B, 1, 4): w, h, w, h


def _sizes_hw(target_sizes: Any, num_images: int) -> Tensor:
    if len(target_sizes) != num_images:
        raise ValueError(
            f"target_sizes: {len(target_sizes)} sizes for {num_images} images; give one (height, width) for each."
        )
    if isinstance(target_sizes, Tensor):
        sizes_hw = target_sizes.float()
    else:
        sizes_hw = torch.tensor(np.array([[float(v) for v in size] for size in target_sizes]), dtype=torch.float32)
    if tuple(sizes_hw.shape) != (num_images, 2):
        raise ValueError(f"target_sizes: shape {tuple(sizes_hw.shape)}; expected ({num_images}, 2), height and width.")
    return sizes_hw


def _thresholds(threshold: float, class_thresholds: Any, num_classes: int) -> Tensor:
    """(C,) float32: the class's own threshold, or the common one."""
    if class_thresholds is None:
        return torch.full((num_classes,), float(threshold))
    if isinstance(class_thresholds, Mapping):
        unknown = [label for label in class_thresholds if not 0 <= label < num_classes]
        if unknown:
            raise ValueError(f"class_thresholds: no classes {unknown}; the model has 0 to {num_classes - 1}.")
        thresholds = torch.full((num_classes,), float(threshold))
        for label, value in class_thresholds.items():
            thresholds[label] = float(value)
        return thresholds
    if len(class_thresholds) != num_classes:
        raise ValueError(
            f"class_thresholds: {len(class_thresholds)} values for {num_classes} classes; give one for each, or a "
            f"dict of those that differ from threshold."
        )
    return torch.as_tensor(class_thresholds, dtype=torch.float32, device="cpu")
