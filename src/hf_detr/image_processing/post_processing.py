"""The model's outputs -> detections, with one copy from the device for the whole batch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms


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
    # B images, Q queries, C classes and one more for "no object"; N detections of the whole batch
    logits, boxes_cxcywh = outputs.logits, outputs.pred_boxes
    num_images, num_classes = logits.shape[0], logits.shape[-1] - 1
    thresholds = _thresholds(threshold, class_thresholds, num_classes)  # (C,)
    sizes_hw = None if target_sizes is None else _sizes_hw(target_sizes, num_images)  # (B, 2)
    if top_k is not None and (isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k={top_k!r}: expected 1 or more detections an image, or None for all.")
    if nms_iou_threshold is not None and not 0 <= nms_iou_threshold <= 1:
        raise ValueError(f"nms_iou_threshold={nms_iou_threshold!r}: expected an IoU in [0, 1], or None for no NMS.")

    logits, boxes_cxcywh = logits.float(), boxes_cxcywh.float()
    if _is_on_host(logits):
        place, scores, labels = _likely(logits, float(thresholds.min()))
        boxes = boxes_cxcywh.reshape(-1, 4).numpy()[place]
    else:
        if sizes_hw is not None and sizes_hw.device.type != "cpu":  # to pixels there, for the sizes need no copy then
            boxes_cxcywh, sizes_hw = boxes_cxcywh * sizes_hw.flip(-1).repeat(1, 2)[:, None], None
        best, label = logits.softmax(-1)[..., :-1].max(-1)
        # labels ride along as float32, exact below 2**24
        packed = torch.cat((best[..., None], label[..., None].float(), boxes_cxcywh), dim=-1).cpu()  # the one copy
        packed = packed.flatten(0, -2).numpy()
        place, scores, labels, boxes = (
            np.arange(len(packed)),
            packed[:, 0],
            packed[:, 1].astype(np.int64),
            packed[:, 2:],
        )
    keep = scores > thresholds[labels]
    image = place[keep] // logits.shape[1]
    sizes_hw = None if sizes_hw is None else sizes_hw.numpy()
    results = _by_image(image, scores[keep], labels[keep], boxes[keep], sizes_hw, num_images)
    if top_k is not None or nms_iou_threshold is not None:
        results = [_select(result, top_k, nms_iou_threshold) for result in results]
    return results


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _likely(logits: Tensor, threshold: float) -> tuple[NDArray, NDArray, NDArray]:
    """(B, Q, C + 1) float32 on the CPU -> those of the B Q queries, by number, that may pass `threshold`, as most
    cannot; the probability and the number of their best class, "no object" aside."""
    # One comparison of all logits takes a fraction of a softmax's time, or of looking for the best. NumPy compares
    # quicker than torch, and its small operations cost less.
    rows = logits.flatten(0, -2)  # (B Q, C + 1)
    num_rows, width = rows.shape
    place, others = np.arange(num_rows), width - 1
    if 0 < threshold < 1 and others:
        # p > t means that a logit is above log(t / (1 - t)) + log(sum of exp of the others). That sum is at least its
        # term of "no object"; and, by Jensen, at least as if all others were alike: (sum of all - logit) / others each.
        numbers, log_odds = rows.numpy(), math.log(threshold / (1 - threshold))
        sums = numbers @ np.ones(width, np.float32)
        alike = (sums + others * (math.log(others) + log_odds)) / width
        least = np.maximum(alike, numbers[:, -1] + log_odds)
        may_pass = numbers > (least - 1e-3 * (1 + np.abs(least)))[:, None]  # a little less, for rounding; never for NaN
        may_pass[:, -1] = False
        place = np.flatnonzero(may_pass) // width
        is_first = np.ones(len(place), bool)
        is_first[1:] = place[1:] != place[:-1]
        place = place[is_first]
    probabilities = rows.index_select(0, torch.from_numpy(place)).softmax(-1).numpy()
    probabilities[:, -1] = 0
    labels = probabilities.argmax(1)
    return place, probabilities[np.arange(len(place)), labels], labels


def _by_image(
    image: NDArray, scores: NDArray, labels: NDArray, boxes_cxcywh: NDArray, sizes_hw: NDArray | None, num_images: int
) -> list[dict[str, Tensor]]:
    """(N,) and (N, 4), image by image, queries in order -> one dict an image."""
    half = 0.5 * boxes_cxcywh[:, 2:]
    boxes_xyxy = np.empty((len(boxes_cxcywh), 2, 2), np.float32)
    np.subtract(boxes_cxcywh[:, :2], half, out=boxes_xyxy[:, 0])
    np.add(boxes_cxcywh[:, :2], half, out=boxes_xyxy[:, 1])
    if sizes_hw is not None:
        boxes_xyxy *= sizes_hw[image, None, ::-1]
    boxes_xyxy = boxes_xyxy.reshape(-1, 4)
    ends = np.bincount(image, minlength=num_images).cumsum().tolist()
    # from slices: each result is a tensor of its own, which pickled takes nothing of the others along
    return [
        {
            "scores": torch.from_numpy(scores[start:end]),
            "labels": torch.from_numpy(labels[start:end]),
            "boxes": torch.from_numpy(boxes_xyxy[start:end]),
        }
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _select(result: dict[str, Tensor], top_k: int | None, nms_iou_threshold: float | None) -> dict[str, Tensor]:
    scores = result["scores"]
    chosen = torch.arange(len(scores))  # in the order of the queries, as stock
    if nms_iou_threshold is not None:
        chosen = batched_nms(result["boxes"], scores, result["labels"], nms_iou_threshold).sort().values
    if top_k is not None:
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)[:top_k]]
    return {name: values[chosen] for name, values in result.items()}


def _sizes_hw(target_sizes: Any, num_images: int) -> Tensor:
    """(B, 2) float32, where the sizes are."""
    if len(target_sizes) != num_images:
        raise ValueError(
            f"target_sizes: {len(target_sizes)} sizes for {num_images} images; give one (height, width) for each."
        )
    if not isinstance(target_sizes, Tensor) and all(isinstance(size, Tensor) for size in target_sizes):
        target_sizes = torch.stack(list(target_sizes))  # not number by number, which may wait for a device each time
    if isinstance(target_sizes, Tensor):
        sizes_hw = target_sizes.detach().float()
    else:
        sizes_hw = torch.from_numpy(np.array([[float(v) for v in size] for size in target_sizes], dtype=np.float32))
    if tuple(sizes_hw.shape) != (num_images, 2):
        raise ValueError(f"target_sizes: shape {tuple(sizes_hw.shape)}; expected ({num_images}, 2), height and width.")
    return sizes_hw


def _thresholds(threshold: float, class_thresholds: Any, num_classes: int) -> NDArray:
    """(C,) float32 on the host: the class's own threshold, or the common one."""
    if class_thresholds is None:
        return np.full(num_classes, threshold, np.float32)
    if isinstance(class_thresholds, Mapping):
        unknown = [label for label in class_thresholds if not 0 <= label < num_classes]
        if unknown:
            raise ValueError(f"class_thresholds: no classes {unknown}; the model has 0 to {num_classes - 1}.")
        thresholds = np.full(num_classes, threshold, np.float32)
        for label, value in class_thresholds.items():
            thresholds[label] = float(value)
        return thresholds
    if len(class_thresholds) != num_classes:
        raise ValueError(
            f"class_thresholds: {len(class_thresholds)} values for {num_classes} classes; give one for each, or a "
            f"dict of those that differ from threshold."
        )
    return torch.as_tensor(class_thresholds, dtype=torch.float32).numpy(force=True)
