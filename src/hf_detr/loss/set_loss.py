"""The set loss (paper, 3.1 and A.2): classification of every query, and the boxes of the matched ones.

Every decoder layer is matched and trained on its own (auxiliary losses). All layers are computed at once; the result
for layer l has its name with `_l`, the last layer's has none. Everything is float32, also under autocast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou
from .matcher import Matches, match
from .targets import Targets, pack_targets, to_device

# L decoder layers, B images, Q queries, N objects, M matches of one layer, C classes; class C is "no object"


@dataclass(frozen=True)
class Normalisers:
    """What the sums over this process's batch are divided by, so that processes average to the loss of one big batch.

    Attributes:
        boxes: objects, at least 1 (original: per process, the mean over processes).
        class_weights: the summed weights of the classification: 1 for each match, `eos_coefficient` for the rest.
    """

    boxes: Tensor | float
    class_weights: Tensor | float


def detection_loss(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    labels: Sequence[Mapping[str, Tensor]],
    *,
    class_cost: float = 1.0,
    bbox_cost: float = 5.0,
    giou_cost: float = 2.0,
    bbox_loss_coefficient: float = 5.0,
    giou_loss_coefficient: float = 2.0,
    eos_coefficient: float = 0.1,
    num_items_in_batch: Tensor | int | None = None,
    num_images_in_batch: Tensor | int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum to train on, and its parts.

    Args:
        logits: (L, B, Q, C + 1); the last layer's come last.
        boxes_cxcywh: (L, B, Q, 4) in [0, 1].
        labels: one dict per image, see `pack_targets`.
        num_items_in_batch: objects of the whole optimizer step, over all its micro-batches and processes, where it is
            more than this one forward pass. The losses of the passes then add up to the step's.
        num_images_in_batch: the images of that step, for the classification. Left out, they are taken to be as many as
            the objects suggest.

    Returns:
        the loss, and a dict of `loss_ce`, `loss_bbox`, `loss_giou` (unweighted), `cardinality_error` and `class_error`
        (in percent, only of the last layer), the two errors without gradient; names ending in `_l` for the layers
        before the last.

    Raises:
        TypeError, ValueError: see `pack_targets` and `match`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, boxes_cxcywh = logits.float(), boxes_cxcywh.float()
        num_layers, batch_size, num_queries, _ = logits.shape
        targets = pack_targets(labels, batch_size, logits.device)
        matches = match(logits, boxes_cxcywh, targets, class_cost, bbox_cost, giou_cost)
        normalisers = count_normalisers(
            targets, num_queries, eos_coefficient, logits.device, num_items_in_batch, num_images_in_batch
        )
        ce = _classification(logits, targets, matches, eos_coefficient) / normalisers.class_weights  # (L,)
        l1, giou_loss = _boxes(boxes_cxcywh, targets, matches)
        l1, giou_loss = l1 / normalisers.boxes, giou_loss / normalisers.boxes
        loss = (ce + bbox_loss_coefficient * l1 + giou_loss_coefficient * giou_loss).sum()
        parts = {"loss_ce": ce, "loss_bbox": l1, "loss_giou": giou_loss}
        parts["cardinality_error"] = _cardinality_error(logits, targets)
        loss_dict = {name: values[-1] for name, values in parts.items()}
        loss_dict["class_error"] = _class_error(logits[-1], targets, matches)
        for layer in range(num_layers - 1):
            loss_dict.update({f"{name}_{layer}": values[layer] for name, values in parts.items()})
    return loss, loss_dict


def count_normalisers(
    targets: Targets,
    num_queries: int,
    eos_coefficient: float,
    device: torch.device,
    num_items_in_batch: Tensor | int | None = None,
    num_images_in_batch: Tensor | int | None = None,
) -> Normalisers:
    """From counts the host knows: nothing of the predictions, and nothing is read back from the device.

    Without `num_items_in_batch` the counts are averaged over processes, because data parallelism averages gradients.
    """
    num_boxes, num_images = targets.num_boxes, len(targets.sizes)
    matched = sum(min(size, num_queries) for size in targets.sizes)
    if num_items_in_batch is not None:
        share = num_items_in_batch / num_boxes if num_boxes else 1.0  # how many passes like this one make the step
        images = num_images * share if num_images_in_batch is None else num_images_in_batch
        matched_in_step = matched * share if num_boxes else num_items_in_batch
        class_weights = matched_in_step + eos_coefficient * (images * num_queries - matched_in_step)
        return Normalisers(_at_least_one(num_items_in_batch), class_weights)
    class_weights = matched + eos_coefficient * (num_images * num_queries - matched)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = torch.tensor([num_boxes, class_weights], dtype=torch.float32)
        counts = to_device(counts.numpy(), device)
        torch.distributed.all_reduce(counts)  # the sum; divided once
        counts = counts / torch.distributed.get_world_size()
        return Normalisers(counts[0].clamp(min=1), counts[1])
    return Normalisers(max(num_boxes, 1), class_weights)


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _classification(logits: Tensor, targets: Targets, matches: Matches, eos_coefficient: float) -> Tensor:
    """(L,) summed, weighted cross-entropy. Most queries answer for nothing; their weight is small (paper, 3.1)."""
    num_layers, _, _, num_logits = logits.shape
    no_object = num_logits - 1
    wanted = torch.full((num_layers, logits.shape[1] * logits.shape[2]), no_object, device=logits.device)  # (L, BQ)
    wanted.scatter_(1, matches.query, targets.class_labels[matches.target])
    weights = torch.ones(num_logits, device=logits.device)
    weights[no_object] = eos_coefficient
    losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weights, reduction="none")
    return losses.unflatten(0, (num_layers, -1)).sum(1)


def _boxes(boxes_cxcywh: Tensor, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor]:
    """(L,) summed L1 distances and (L,) summed 1 - GIoU, of the matched pairs alone."""
    index = matches.query[..., None].expand(-1, -1, 4)
    predicted = boxes_cxcywh.flatten(1, 2).gather(1, index)  # (L, M, 4)
    wanted = targets.boxes_cxcywh[matches.target]
    l1 = (predicted - wanted).abs().sum((1, 2))
    return l1, (1 - giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))).sum(1)


@torch.no_grad()
def _cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    """(L,) mean difference between the queries that see an object and the objects there are. To be looked at only."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)  # (L, B)
    there = torch.zeros(logits.shape[1], device=logits.device).index_add_(
        0, targets.image_index, torch.ones_like(targets.class_labels, dtype=torch.float32)
    )
    return (found - there).abs().mean(-1)


@torch.no_grad()
def _class_error(last_logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
    """Percent of matched queries of the last layer whose best class is wrong; 100 where nothing is matched."""
    wanted = targets.class_labels[matches.target[-1]]
    if wanted.numel() == 0:
        return last_logits.new_tensor(100.0)
    best = last_logits.flatten(0, 1)[matches.query[-1]].argmax(-1)
    return 100 - 100 * (best == wanted).float().mean()
