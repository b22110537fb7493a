"""The bipartite matching (paper, 3.1): one query for each object, so that the total cost is least.

The matcher has no parameters, and its costs are not back-propagated. It needs the host, because the Hungarian algorithm
is sequential; so all decoder layers' costs go there in one copy, and all assignments come back in one. A query is
compared with objects of its own image only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou
from .targets import Targets, to_device

# L decoder layers, B images, Q queries, N objects of all images, M matches of one layer, C classes without "no object"

# Farther outside the image than this, in its sizes, and a box is in pixels. A box that hangs over the edge is within.
_FARTHEST = 3.0


@dataclass(frozen=True)
class Matches:
    """The assignment. Row l of both belongs to decoder layer l, column m to one pair.

    Attributes:
        query: (L, M) int64, image * Q + query.
        target: (L, M) int64, the object's index in `Targets`. M is the same in each layer: an image with more objects
            than queries leaves some without a query, the least fitting ones.
    """

    query: Tensor
    target: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """Matches every layer's predictions with the objects of their image.

    The cost of a pair is `-class_cost * p(class) + bbox_cost * |box - box|_1 - giou_cost * GIoU`, boxes as fractions of
    the image.
    """

    class_cost: float = 1.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets) -> Matches:
        """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4), float32 or float64 -> the cheapest assignment of each image
        in each layer.

        Raises:
            ValueError: predictions that are not finite; a class label outside [0, C); a target box that is not finite,
                has a negative side, or lies far outside the image (pixels instead of fractions).
        """
        num_layers, _, num_queries, num_logits = logits.shape
        labels = targets.class_labels
        known_labels = labels.clamp(0, num_logits - 2)  # an index error would stop a GPU for good; reported below
        wrong = (labels != known_labels) | _is_impossible(targets.boxes_cxcywh)  # (N,)
        costs = self._pair_costs(logits, boxes_cxcywh, targets, known_labels)  # (L, N, Q)
        checksum = logits.sum() + boxes_cxcywh.sum()  # not finite where any prediction is not

        # the one copy to the host
        host = torch.cat((costs.flatten(), wrong.to(costs.dtype), checksum[None])).cpu().numpy()
        if not np.isfinite(host[-1]):
            _raise_for_predictions(logits, boxes_cxcywh)
        if host[costs.numel() : -1].any():
            _raise_for_targets(targets, num_logits - 1)

        costs = host[: costs.numel()].reshape(costs.shape)
        stops = np.cumsum(targets.sizes)
        queries, objects = [], []
        for layer_costs in costs:
            for image, (stop, size) in enumerate(zip(stops, targets.sizes, strict=True)):
                if size:
                    rows, columns = linear_sum_assignment(layer_costs[stop - size : stop])
                    objects.append(rows + (stop - size))
                    queries.append(columns + image * num_queries)
        pairs = np.zeros((2, 0), dtype=np.int64)
        if objects:
            pairs = np.stack((np.concatenate(queries), np.concatenate(objects)))
        pairs = to_device(pairs.reshape(2, num_layers, -1), logits.device)  # the one copy back
        return Matches(query=pairs[0], target=pairs[1])

    def _pair_costs(self, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, labels: Tensor) -> Tensor:
        """(L, N, Q): the cost of giving each object to each query of its image; no pair across images is computed."""
        image = targets.image_index
        probability = logits.softmax(-1).transpose(-1, -2)[:, image, labels]  # (L, N, Q)
        predicted = boxes_cxcywh[:, image]  # (L, N, Q, 4)
        expected = targets.boxes_cxcywh[:, None]  # (N, 1, 4)
        distance = (predicted - expected).abs().sum(-1)
        overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(expected))
        return self.bbox_cost * distance - self.class_cost * probability - self.giou_cost * overlap


def _is_impossible(boxes_cxcywh: Tensor) -> Tensor:
    """(N, 4) -> (N,) bool. Comparisons with NaN are false, so it tests for what a valid box fulfils."""
    in_reach = (boxes_cxcywh.abs() <= _FARTHEST).all(-1)
    return ~(in_reach & (boxes_cxcywh[:, 2:] >= 0).all(-1))


def _raise_for_predictions(logits: Tensor, boxes: Tensor) -> None:
    finite = logits.isfinite().all(-1) & boxes.isfinite().all(-1)  # (L, B, Q)
    layer, image, query = (~finite).nonzero()[0].tolist() if not finite.all() else (0, 0, 0)
    raise ValueError(
        f"The predictions are not finite (decoder layer {layer}, image {image} of the batch, query {query}: logits "
        f"{logits[layer, image, query].tolist()[:4]}..., box {boxes[layer, image, query].tolist()}). The weights or "
        "the input hold NaN or infinity: lower the learning rate, clip gradients (max_grad_norm=0.1), use bf16 instead "
        "of fp16, and look at pixel_values."
    )


def _raise_for_targets(targets: Targets, num_labels: int) -> None:
    image_index, labels = targets.image_index.tolist(), targets.class_labels.tolist()
    seen: dict[int, int] = {}
    for image, label, box in zip(image_index, labels, targets.boxes_cxcywh.tolist(), strict=True):
        location = f"labels[{image}], object {seen.get(image, 0)}"
        seen[image] = seen.get(image, 0) + 1
        if not 0 <= label < num_labels:
            raise ValueError(
                f"{location}: class label {label} is outside 0 to {num_labels - 1}. The model has {num_labels}; "
                " count classes from 0, or make the model with id2label of all of them."
            )
        if bool(_is_impossible(torch.tensor([box]))[0]):
            raise ValueError(
                f"{location}: box {box} is not (centre x, centre y, width, height) as fractions of the image; divide "
                "pixels by the image's size, and drop boxes with NaN or negative sides."
            )
