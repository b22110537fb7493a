"""The labels of a batch in the form of the loss: all objects in one row, and which image each belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# B images, N objects of all images together, S of them soft; C classes, class C is "no object"


@dataclass(frozen=True)
class Targets:
    """The objects of a batch, image after image.

    Attributes:
        class_labels: (N,) int64 in [0, num_labels).
        boxes_cxcywh: (N, 4) float32, in [0, 1] of the visible image.
        image_index: (N,) int64, the image of each object.
        sizes: the number of objects of each of the B images, on the host.
        masks: where they were asked for, B of (T, h, w) bool, True on the object; they lie at the top left of the
            canvas and may end with the visible image.
        soft: what a teacher sees in these images, where there is one.
    """

    class_labels: Tensor
    boxes_cxcywh: Tensor
    image_index: Tensor
    sizes: tuple[int, ...]
    masks: tuple[Tensor, ...] | None = None
    soft: "SoftTargets | None" = None

    @property
    def num_boxes(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class SoftTargets:
    """Objects that a teacher sees, each with a distribution over the classes.

    Attributes:
        objects: S boxes, each with its likeliest class.
        probabilities: (S, C + 1) float32, of their classes and, last, of there being no object.
        queries: (S,) int64, the query of its image that is to learn each, where that is known.
    """

    objects: Targets
    probabilities: Tensor
    queries: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """(S,) how sure the teacher is that there is an object."""
        return 1 - self.probabilities[:, -1]


def pack_targets(
    labels: Sequence[Mapping[str, Tensor]],
    batch_size: int,
    device: torch.device,
    mask_canvas_hw: tuple[int, int] | None = None,
    is_padded: bool = True,
) -> Targets:
    """Label dicts (`class_labels` (T,), `boxes` (T, 4) cxcywh in [0, 1]; other keys are ignored) -> `Targets`.

    What a teacher saw, `teacher_probabilities` (S, C + 1), `teacher_boxes` (S, 4) and perhaps `teacher_queries` (S,),
    becomes `soft`, where images have it. Only what the host knows is checked here (types, keys, shapes). Values are
    checked in `HungarianMatcher`, where they come to the host anyway.

    Args:
        mask_canvas_hw: the size of `pixel_values` where `masks` (T, h, w) are wanted as well: 0 off the object, any
            other whole number on it, of the size of the image without its padding, or padded as the image.
        is_padded: whether images may be smaller than that.

    Raises:
        TypeError: not a list of dicts of tensors.
        ValueError: another number of dicts than images, a missing key, or shapes that do not fit.
    """
    if isinstance(labels, Mapping) or not isinstance(labels, Sequence) or isinstance(labels, str):
        raise TypeError(
            f"labels must be a list with one dict per image (class_labels, boxes), not {type(labels).__name__}; "
            "a collator must not stack them."
        )
    if len(labels) != batch_size:
        raise ValueError(f"{len(labels)} label dicts for {batch_size} images; give one per image, empty ones as well.")
    for index, label in enumerate(labels):
        _check_one(label, index)
    sizes = tuple(len(label["class_labels"]) for label in labels)
    masks = None
    if mask_canvas_hw is not None:
        for index, label in enumerate(labels):
            _check_masks(label, index, mask_canvas_hw, is_padded)
        masks = tuple(label["masks"].to(device, non_blocking=True) != 0 for label in labels)
    image_index = to_device(np.repeat(np.arange(batch_size), sizes), device)
    if not labels:
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return Targets(nothing, torch.zeros(0, 4, dtype=torch.float32, device=device), image_index, sizes, masks)
    return Targets(
        class_labels=torch.cat([label["class_labels"] for label in labels]).to(device, torch.int64, non_blocking=True),
        boxes_cxcywh=torch.cat([label["boxes"].reshape(-1, 4) for label in labels]).to(
            device, torch.float32, non_blocking=True
        ),
        image_index=image_index,
        sizes=sizes,
        masks=masks,
        soft=_pack_soft_targets(labels, device),
    )


def _pack_soft_targets(labels: Sequence[Mapping[str, Tensor]], device: torch.device) -> SoftTargets | None:
    taught = [label for label in labels if "teacher_boxes" in label]
    if not taught:
        return None
    names = [name for name in ("teacher_probabilities", "teacher_boxes", "teacher_queries") if name in taught[0]]
    nothing = {name: taught[0][name][:0] for name in names}
    every = [label if "teacher_boxes" in label else nothing for label in labels]
    objects = [
        {"class_labels": label["teacher_probabilities"][:, :-1].argmax(-1), "boxes": label["teacher_boxes"]}
        for label in every
    ]
    rest = {name: torch.cat([label[name] for label in every]).to(device, non_blocking=True) for name in names}
    probabilities, queries = rest["teacher_probabilities"].float(), rest.get("teacher_queries")
    return SoftTargets(pack_targets(objects, len(labels), device), probabilities, queries)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Host to device without waiting for the device, which pinned memory allows."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _check_one(label: Mapping[str, Tensor], index: int) -> None:
    if not isinstance(label, Mapping):
        raise TypeError(f"labels[{index}] must be a dict with class_labels and boxes, not {type(label).__name__}.")
    for key in ("class_labels", "boxes"):
        if key not in label:
            raise ValueError(f"labels[{index}] has no {key!r}, only {sorted(label)}; the image processor makes both.")
        if not isinstance(label[key], Tensor):
            raise TypeError(f"labels[{index}][{key!r}] must be a tensor, not {type(label[key]).__name__}.")
    class_labels, boxes = label["class_labels"], label["boxes"]
    if class_labels.ndim != 1 or (class_labels.is_floating_point() and class_labels.numel()):
        raise ValueError(
            f"labels[{index}]['class_labels'] must be whole numbers of shape (T,), not {class_labels.dtype} "
            f"{tuple(class_labels.shape)}."
        )
    if boxes.shape != (len(class_labels), 4) and not (boxes.numel() == 0 and len(class_labels) == 0):
        raise ValueError(
            f"labels[{index}]['boxes'] must have the shape ({len(class_labels)}, 4), one box per class label, "
            f"not {tuple(boxes.shape)}."
        )
    if not boxes.is_floating_point() and boxes.numel():
        raise ValueError(
            f"labels[{index}]['boxes'] is {boxes.dtype}: boxes are (centre x, centre y, width, height) as fractions of "
            "the image, in a floating-point dtype; divide pixels by the image's width and height."
        )


def _check_masks(label: Mapping[str, Tensor], index: int, canvas_hw: tuple[int, int], is_padded: bool) -> None:
    location, count = f"labels[{index}]['masks']", len(label["class_labels"])
    if "masks" not in label:
        raise ValueError(
            f"labels[{index}] has no 'masks', only {sorted(label)}; segmentations give them, or train "
            "DetrForObjectDetection, which needs none."
        )
    masks = label["masks"]
    if not isinstance(masks, Tensor):
        raise TypeError(f"{location} must be a tensor, not {type(masks).__name__}.")
    if masks.is_floating_point() and masks.numel():
        raise ValueError(f"{location} is {masks.dtype}: masks are bool or whole numbers; compare them with 0.5.")
    if (masks.ndim != 3 or len(masks) != count) and not (masks.numel() == 0 and count == 0):
        raise ValueError(
            f"{location} must have the shape ({count}, height, width), one mask per class label, not "
            f"{tuple(masks.shape)}."
        )
    size_hw = tuple(masks.shape[1:])
    fits = size_hw == canvas_hw or (is_padded and size_hw[0] <= canvas_hw[0] and size_hw[1] <= canvas_hw[1])
    if count and not fits:
        raise ValueError(
            f"{location} has the size {size_hw}, pixel_values {canvas_hw}"
            + (": masks lie within their image." if is_padded else ", and no pixel_mask says that they are padded.")
            + " Resize masks with their image, as the image processor does."
        )
