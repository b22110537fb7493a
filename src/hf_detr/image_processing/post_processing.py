"""The model's outputs -> detections, with one copy from the device for the whole batch."""

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from ..boxes import cxcywh_to_xyxy


@torch.no_grad()
def detections_from_outputs(
    outputs: Any,
    threshold: float | None,
    target_sizes: Tensor | Sequence[Sequence[int]] | None,
    top_k: int | None,
    class_thresholds: Mapping[int, float] | Sequence[float] | None,
    nms_iou_threshold: float | None,
    with_queries: bool = False,
) -> list[dict[str, Tensor]]:
    """See `DetrImageProcessor.post_process_object_detection`; `with_queries` adds the number of each query (N,)."""
    # B images, Q queries, C classes and one more for "no object"; N detections of one image
    logits, boxes = outputs.logits.float(), cxcywh_to_xyxy(outputs.pred_boxes.float())
    num_images, num_classes = logits.shape[0], logits.shape[-1] - 1
    thresholds = thresholds_of_classes(threshold, class_thresholds, num_classes)  # (C,)
    scale = None if target_sizes is None else _sizes_wh(target_sizes, num_images).repeat(1, 2)[:, None]  # (B, 1, 4)
    if top_k is not None and (isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k={top_k!r}: expected 1 or more detections an image, or None for all.")
    if nms_iou_threshold is not None and not 0 <= nms_iou_threshold <= 1:
        raise ValueError(f"nms_iou_threshold={nms_iou_threshold!r}: expected an IoU in [0, 1], or None for no NMS.")

    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    # a sum is finite only of finite numbers; softmax makes finite probabilities of a logit of -inf
    scores = scores.where((logits.sum(-1) + boxes.sum(-1)).isfinite(), math.nan)
    if scale is not None and scale.device == boxes.device:
        boxes, scale = boxes * scale, None
    # labels ride along as float32, exact below 2**24
    packed = torch.cat((scores[..., None], labels[..., None].float(), boxes), dim=-1).cpu().numpy()  # the one copy
    if scale is not None:  # sizes on the host, for outputs of a device
        packed[..., 2:] *= scale.numpy(force=True)
    invalid = int(np.isnan(packed[..., 0]).sum())
    if invalid:
        warnings.warn(
            f"{invalid} of {scores.numel()} queries have NaN or infinite logits or boxes and give no detection; check "
            "the weights and the pixel values, and mask a class by a large negative number instead of -inf."
        )
    image, query = np.nonzero(packed[..., 0] > thresholds[packed[..., 1].astype(np.int64)])  # NaN is above nothing
    scores, labels, boxes = np.split(packed[image, query], (1, 2), axis=1)  # in the order of the queries, as stock
    columns = {"scores": scores[:, 0].copy(), "labels": labels[:, 0].astype(np.int64), "boxes": boxes.copy()}
    columns |= {"queries": query} if with_queries else {}
    ends = np.bincount(image, minlength=num_images).cumsum().tolist()
    # from slices: each result is a tensor of its own, which pickled takes nothing of the others along
    results = [
        {name: torch.from_numpy(values[start:end]) for name, values in columns.items()}
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    if top_k is None and nms_iou_threshold is None:
        return results
    return [_select(result, top_k, nms_iou_threshold) for result in results]


def _select(result: dict[str, Tensor], top_k: int | None, nms_iou_threshold: float | None) -> dict[str, Tensor]:
    if nms_iou_threshold is not None:
        with torch.device("cpu"):  # it makes tensors on the default device
            kept = batched_nms(result["boxes"], result["scores"], result["labels"], nms_iou_threshold)
        kept = kept.sort().values
        result = {name: values[kept] for name, values in result.items()}
    if top_k is not None:
        kept = result["scores"].argsort(descending=True, stable=True)[:top_k]
        result = {name: values[kept] for name, values in result.items()}
    return result


def _sizes_wh(target_sizes: Any, num_images: int) -> Tensor:
    """(B, 2) float32 widths and heights, where the sizes are."""
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
    return sizes_hw.flip(-1)


def thresholds_of_classes(threshold: float | None, class_thresholds: Any, num_classes: int) -> NDArray:
    """(C,) float32 on the host: the class's own threshold, or the common one; -inf where there is none."""
    thresholds = np.full(num_classes, _threshold("threshold", threshold), np.float32)
    if isinstance(class_thresholds, Mapping):
        unknown = [label for label in class_thresholds if not 0 <= label < num_classes]
        if unknown:
            raise ValueError(f"class_thresholds: no classes {unknown}; the model has 0 to {num_classes - 1}.")
        for label, value in class_thresholds.items():
            thresholds[operator.index(label)] = _threshold(f"class_thresholds[{label}]", value)
    elif class_thresholds is not None:
        if len(class_thresholds) != num_classes:
            raise ValueError(
                f"class_thresholds: {len(class_thresholds)} values for {num_classes} classes; give one for each, or a "
                f"dict of those that differ from threshold."
            )
        thresholds[:] = [_threshold(f"class_thresholds[{i}]", value) for i, value in enumerate(class_thresholds)]
    return thresholds


def _threshold(name: str, value: Any) -> float:
    """One threshold; None is none, so that every score passes."""
    number = -math.inf if value is None else float(value)
    if not number <= 1:
        raise ValueError(f"{name}={value!r}: expected a probability in [0, 1], or None to keep every score.")
    return number
