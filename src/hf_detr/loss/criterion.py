"""The set loss (paper, 3.1 and A.2): classification of every query, and the boxes of the matched ones.

Every decoder layer is matched and trained on its own (auxiliary losses). All layers are computed at once; the result
for layer l has its name with `_l`, the last layer's has none. Everything is float32, also under autocast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, giou, iou
from ..configuration_detr import DetrConfig
from .denoising import NoisedTargets, denoising_losses
from .distillation import cell_distillation_losses, distillation_losses
from .encoder_loss import CellPredictions, encoder_loss
from .matcher import HungarianMatcher, Matches
from .targets import Targets, pack_targets, to_device

# L decoder layers, B images, Q queries, K groups of them, N objects, M matches of one layer, C classes; class C is "no
# object"


@dataclass(frozen=True)
class Normalisers:
    """What the sums over this process's batch are divided by, so that processes average to the loss of one big batch.

    Attributes:
        boxes: objects, at least 1 (original: per process, the mean over processes).
        class_weights: the summed weights of the classification: 1 for each match, `eos_coefficient` for the rest.
        images: images.
    """

    boxes: Tensor | float
    class_weights: Tensor | float
    images: Tensor | float


@dataclass(frozen=True)
class SetLosses:
    """What the bipartite loss gives.

    Attributes:
        loss: () the weighted sum to train on.
        parts: its parts, by name; see `SetCriterion`.
        matches: the assignment of the last layer's object queries, its rows of (M,) alone.
        num_boxes: what sums over objects are divided by.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    matches: Matches
    num_boxes: Tensor | float


@dataclass(frozen=True)
class SetCriterion:
    """The bipartite loss: matches predictions with objects, then compares the pairs.

    Each layer's loss is `ce + bbox_loss_coefficient * l1 + giou_loss_coefficient * (1 - giou)`, of which the first is a
    mean over all queries, weighted by `eos_coefficient` where no object is matched, and the others are means over the
    objects. No parameters; `from_config` makes it from a `DetrConfig`.

    With `iou_aware_classification` a matched query owes its class the square root of its box's IoU and "no object" the
    rest, so that scores rank detections by how well they fit as well (Zhang et al., VarifocalNet, 2021, for one-stage
    detectors and their sigmoids; here for DETR's softmax, with the root so that a fresh model's class head learns too).
    """

    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    eos_coefficient: float = 0.1
    iou_aware_classification: bool = False

    @classmethod
    def from_config(cls, config: DetrConfig) -> "SetCriterion":
        """With the costs and coefficients of the configuration."""
        return cls(
            HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost),
            config.bbox_loss_coefficient,
            config.giou_loss_coefficient,
            config.eos_coefficient,
            config.iou_aware_classification,
        )

    def __call__(self, *args, **kwargs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts alone; arguments as for `losses`."""
        losses = self.losses(*args, **kwargs)
        return losses.loss, losses.parts

    def losses(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        labels: Sequence[Mapping[str, Tensor]] | Targets,
        *,
        query_groups: int = 1,
        noised: NoisedTargets | None = None,
        cells: CellPredictions | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_images_in_batch: Tensor | int | None = None,
        num_matched_in_batch: Tensor | int | None = None,
    ) -> SetLosses:
        """The weighted sum to train on, its parts, and what they were made from.

        Args:
            logits: (L, B, Q, C + 1); the last layer's come last. With `query_groups` or `noised` the queries of the
                further groups follow, then the denoising queries: (L, B, K Q + E, C + 1).
            boxes_cxcywh: (L, B, Q, 4) in [0, 1], likewise.
            labels: one dict per image, see `pack_targets`; or its result.
            query_groups: K. Each group is matched on its own; the mean of the further groups' losses is added to the
                first's.
            noised: the targets of the denoising queries; their loss is added, see `denoising_losses`.
            cells: predictions of the encoder's head; their loss is added, see `encoder_loss`.
            num_items_in_batch: objects of the whole optimizer step, over all its micro-batches and processes, where it
                is more than this one forward pass. The losses of the passes then add up to the step's.
            num_images_in_batch: the images of that step, for the classification. Left out, they are estimated from the
                objects.
            num_matched_in_batch: the objects of that step that have a query: of each image no more than Q. Left out,
                they are estimated from this pass.

        Returns:
            `SetLosses`, whose `parts` are `loss_ce`, `loss_bbox`, `loss_giou` (unweighted), `cardinality_error` and
            `class_error` (in percent, only of the last layer), the two errors without gradient; names ending in `_l`
            for the layers before the last. With groups `loss_groups`, with denoising queries `loss_denoising`, with
            cells `loss_encoder`, and with soft targets `loss_teacher`: their weighted sums (over layers), as they are
            in the loss.

        Raises:
            TypeError, ValueError: see `pack_targets` and `HungarianMatcher`.
        """
        with torch.autocast(logits.device.type, enabled=False):
            if logits.dtype != torch.float64:
                logits, boxes_cxcywh = logits.float(), boxes_cxcywh.float()
            num_layers, batch_size = logits.shape[:2]
            num_denoising = 0 if noised is None else noised.class_labels.shape[1]
            num_queries, remainder = divmod(logits.shape[2] - num_denoising, query_groups)
            if remainder:
                raise ValueError(
                    f"{logits.shape[2] - num_denoising} queries do not make query_groups={query_groups} groups."
                )
            targets = labels if isinstance(labels, Targets) else pack_targets(labels, batch_size, logits.device)

            # a group is one more set of layers: (K L, B, Q, .), all matched in one visit to the host
            matched_logits = _groups_as_layers(logits, num_queries, query_groups)
            matched_boxes = _groups_as_layers(boxes_cxcywh, num_queries, query_groups)
            matches = self.matcher(matched_logits, matched_boxes, targets)
            normalisers = count_normalisers(
                targets,
                num_queries,
                self.eos_coefficient,
                logits.device,
                num_items_in_batch,
                num_images_in_batch,
                num_matched_in_batch,
            )
            l1, giou_loss, ious = _boxes(matched_boxes, targets, matches)
            quality = ious.detach().sqrt() if self.iou_aware_classification else None
            ce = _classification(matched_logits, targets, matches, self.eos_coefficient, quality)
            parts = {
                "loss_ce": ce / normalisers.class_weights,
                "loss_bbox": l1 / normalisers.boxes,
                "loss_giou": giou_loss / normalisers.boxes,
            }  # (K L,) each
            totals = self._weighted(parts)
            loss = totals[:num_layers].sum()
            auxiliary = {}
            if query_groups > 1:
                auxiliary["loss_groups"] = totals[num_layers:].sum() / (query_groups - 1)
            if noised is not None:
                rest = slice(query_groups * num_queries, None)
                denoised = denoising_losses(logits[:, :, rest], boxes_cxcywh[:, :, rest], noised, normalisers.boxes)
                auxiliary["loss_denoising"] = self._weighted(denoised).sum()
            if cells is not None:
                of_cells = encoder_loss(cells, targets, normalisers.boxes, normalisers.images)
                auxiliary["loss_encoder"] = self._weighted(of_cells)
            if targets.soft is not None:
                first = (matched_logits[:num_layers], matched_boxes[:num_layers])
                taught = distillation_losses(*first, targets.soft, self.matcher, normalisers.boxes)
                auxiliary["loss_teacher"] = self._weighted(taught).sum()
                if cells is not None:
                    of_cells = cell_distillation_losses(cells, targets.soft, normalisers.boxes)
                    auxiliary["loss_teacher"] = auxiliary["loss_teacher"] + self._weighted(of_cells)

            parts["cardinality_error"] = _cardinality_error(matched_logits[:num_layers], targets)
            last = num_layers - 1
            loss_dict = {name: values[last] for name, values in parts.items()}
            loss_dict["class_error"] = _class_error(matched_logits[last], targets, matches, last)
            for layer in range(last):
                loss_dict.update({f"{name}_{layer}": values[layer] for name, values in parts.items()})
            loss_dict.update(auxiliary)
            of_last_layer = Matches(matches.query[last], matches.target[last])
            return SetLosses(sum(auxiliary.values(), loss), loss_dict, of_last_layer, normalisers.boxes)

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        boxes = self.bbox_loss_coefficient * parts["loss_bbox"] + self.giou_loss_coefficient * parts["loss_giou"]
        return parts["loss_ce"] + boxes


def count_normalisers(
    targets: Targets,
    num_queries: int,
    eos_coefficient: float,
    device: torch.device,
    num_items_in_batch: Tensor | int | None = None,
    num_images_in_batch: Tensor | int | None = None,
    num_matched_in_batch: Tensor | int | None = None,
) -> Normalisers:
    """From counts the host knows: nothing of the predictions, and nothing is read back from the device.

    Without `num_items_in_batch` the counts are averaged over processes, because data parallelism averages gradients.
    """
    num_boxes, num_images = targets.num_boxes, len(targets.sizes)
    matched = sum(min(size, num_queries) for size in targets.sizes)
    if num_items_in_batch is not None:
        share = num_items_in_batch / num_boxes if num_boxes else 1.0  # how many passes like this one make the step
        images = num_images * share if num_images_in_batch is None else num_images_in_batch
        matched_in_step = num_matched_in_batch
        if matched_in_step is None:
            matched_in_step = matched * share if num_boxes else num_items_in_batch
        class_weights = matched_in_step + eos_coefficient * (images * num_queries - matched_in_step)
        return Normalisers(_at_least_one(num_items_in_batch), class_weights, images)
    class_weights = matched + eos_coefficient * (num_images * num_queries - matched)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = torch.tensor([num_boxes, class_weights, num_images], dtype=torch.float32)
        counts = to_device(counts.numpy(), device)
        torch.distributed.all_reduce(counts)  # the sum; divided once
        counts = counts / torch.distributed.get_world_size()
        return Normalisers(counts[0].clamp(min=1), counts[1], counts[2])
    return Normalisers(max(num_boxes, 1), class_weights, num_images)


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _groups_as_layers(values: Tensor, num_queries: int, query_groups: int) -> Tensor:
    """(L, B, K Q + E, .) -> (K L, B, Q, .), the first group's layers first."""
    grouped = values[:, :, : query_groups * num_queries].unflatten(2, (query_groups, num_queries))
    return grouped.movedim(2, 0).flatten(0, 1)


def _classification(
    logits: Tensor, targets: Targets, matches: Matches, eos_coefficient: float, quality: Tensor | None
) -> Tensor:
    """(L,) summed, weighted cross-entropy. Most queries answer for nothing; their weight is small (paper, 3.1).

    `quality`, (L, M) in [0, 1], is what a matched query owes to its class; it owes the rest to "no object", at that
    one's weight, so that at inference a score says how well the box fits as well.
    """
    num_layers, _, _, num_logits = logits.shape
    no_object = num_logits - 1
    labels = targets.class_labels[matches.target]  # (L, M)
    if quality is not None:
        log_probabilities = logits.flatten(1, 2).log_softmax(-1)  # (L, BQ, C + 1)
        empty = log_probabilities[..., no_object]
        matched = log_probabilities.gather(1, matches.query[..., None].expand(-1, -1, num_logits))
        of_label = matched.gather(2, labels[..., None])[..., 0]
        of_empty = matched[..., no_object]
        owed = quality * (of_label - eos_coefficient * of_empty)  # the sum over all queries has eos * of_empty
        return -(eos_coefficient * empty.sum(1) + owed.sum(1))
    wanted = torch.full((num_layers, logits.shape[1] * logits.shape[2]), no_object, device=logits.device)  # (L, BQ)
    wanted.scatter_(1, matches.query, labels)
    weights = torch.ones(num_logits, device=logits.device, dtype=logits.dtype)
    weights[no_object] = eos_coefficient
    losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weights, reduction="none")
    return losses.unflatten(0, (num_layers, -1)).sum(1)


def _boxes(boxes_cxcywh: Tensor, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """(L,) summed L1 distances, (L,) summed 1 - GIoU, (L, M) IoU, of the matched pairs alone."""
    index = matches.query[..., None].expand(-1, -1, 4)
    predicted = boxes_cxcywh.flatten(1, 2).gather(1, index)  # (L, M, 4)
    wanted = targets.boxes_cxcywh[matches.target]
    l1 = (predicted - wanted).abs().sum((1, 2))
    predicted, wanted = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted)
    return l1, (1 - giou(predicted, wanted)).sum(1), iou(predicted, wanted)


@torch.no_grad()
def _cardinality_error(logits: Tensor, targets: Targets) -> Tensor:
    """(L,) mean difference between the queries that see an object and the objects there are. To be looked at only."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(-1)  # (L, B)
    there = torch.zeros(logits.shape[1], dtype=torch.float32, device=logits.device).index_add_(
        0, targets.image_index, torch.ones_like(targets.class_labels, dtype=torch.float32)
    )
    return (found - there).abs().mean(-1)


@torch.no_grad()
def _class_error(last_logits: Tensor, targets: Targets, matches: Matches, last: int) -> Tensor:
    """Percent of matched queries of the last layer whose best class is wrong; 100 where nothing is matched."""
    wanted = targets.class_labels[matches.target[last]]
    if wanted.numel() == 0:
        return last_logits.new_tensor(100.0)
    best = last_logits.flatten(0, 1)[matches.query[last]].argmax(-1)
    return 100 - 100 * (best == wanted).float().mean()
