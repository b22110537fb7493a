"""Three ways to teach several queries the same object, in training alone: tried for how soon they converge, and not in
the package. What is evaluated and saved is the plain DETR.

"dac": DAC-DETR (Hu et al., NeurIPS 2023). The object queries pass through the decoder a second time, with the same
    weights and heads but without self-attention, which keeps queries apart; here beside the others in the same call.
"ms": MS-DETR (Zhao et al., arXiv 2401.03989, implementation a). The same outputs, with a class head of their own.
"hybrid": the epoch scheme of H-DETR (Jia et al., arXiv 2207.13080, 3.3). At first each object wants several queries of
    the same matching, then one; as long as it wants several, detections are doubled.

The first two assign as their authors' code does: to each object the best k queries by a mean of IoU and probability if
that is above a threshold, and the best query in any case. No host is visited.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hf_detr import DetrForObjectDetection
from hf_detr.boxes import cxcywh_to_xyxy, giou, iou
from hf_detr.loss import SetCriterion, Targets, pack_targets
from hf_detr.loss.criterion import SetLosses
from hf_detr.loss.denoising import denoising_losses
from hf_detr.loss.encoder_loss import encoder_loss
from hf_detr.loss.targets import to_device
from hf_detr.nn.auxiliary import TrainingOnly
from hf_detr.nn.transformer import Decoder, DecoderLayer

# L decoder layers, B images, Q queries, N objects of all images, C classes; class C is "no object"


class OneToManyDetr(DetrForObjectDetection):
    """A detector with `settings["one_to_many"]`; `start_one_to_many` makes it of a loaded one. `is_on` may change at
    any step; off, and in evaluation, it is the plain detector."""

    settings: dict
    is_on = True
    _to_many: tuple[Tensor, Tensor] | None = None  # logits and boxes of the step, between the heads and the loss

    @property
    def criterion(self) -> SetCriterion:
        if self.settings["one_to_many"] == "hybrid" and self.is_on and self.training:
            return replace(RepeatingCriterion.from_config(self.config), repeats=self.settings["many_k"])
        return super().criterion

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None, **others):
        """As in the package; `loss_dict` has `loss_many` as well, weighted as it is in the loss."""
        if self.settings["one_to_many"] == "dac":
            self.model.decoder.num_alone = self._num_alone()
        if labels is not None:
            labels = pack_targets(labels, len(pixel_values), pixel_values.device)
        output = super().forward(pixel_values, labels=labels, **others)
        predictions, self._to_many = self._to_many, None
        if labels is not None and predictions is not None:
            with torch.autocast(pixel_values.device.type, enabled=False):
                loss = self.settings["many_weight"] * to_many_loss(self.criterion, *predictions, labels, self.settings)
            output.loss, output.loss_dict["loss_many"] = output.loss + loss, loss
        return output

    def _num_alone(self) -> int:
        divides = self.settings["one_to_many"] == "dac" and self.is_on and self.training
        return self.config.num_queries if divides else 0

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super()._heads(states)
        alone = self._num_alone()
        if alone:
            self._to_many = logits[:, :, -alone:], boxes[:, :, -alone:]
            return logits[:, :, :-alone], boxes[:, :, :-alone]
        if self.settings["one_to_many"] == "ms" and self.is_on and self.training:
            first = slice(self.config.num_queries)
            with torch.autocast(states.device.type, enabled=False):
                head = self.training_only.class_labels_classifier
                self._to_many = head(states[:, :, first].to(head.weight.dtype)), boxes[:, :, first]
        return logits, boxes


def start_one_to_many(model: OneToManyDetr, settings: dict) -> None:
    """Adds what `settings` need to a model as it was loaded. Call it before the optimizer is made."""
    kind = settings["one_to_many"]
    if kind not in ("dac", "ms", "hybrid"):
        raise ValueError(f'one_to_many={kind!r} is none of "dac", "ms" and "hybrid".')
    model.settings = settings
    if kind == "dac":
        model.model.decoder.__class__ = DividedDecoder
        for layer in model.model.decoder.layers:
            layer.__class__ = DividedLayer
    if kind == "ms":
        if model.training_only is None:
            model.training_only = TrainingOnly(None, None)
        # by this name it has the class head's learning rate
        model.training_only.class_labels_classifier = copy.deepcopy(model.class_labels_classifier)
        model._leave_training_only_out_of_files()


class DividedDecoder(Decoder):
    """The first `num_alone` queries, the object queries, pass a second time, behind all others."""

    num_alone = 0

    def forward(self, states: Tensor, query_positions: Tensor, *others):
        for layer in self.layers:
            layer.num_alone = self.num_alone
        first = slice(self.num_alone)
        again = (torch.cat((values, values[:, first]), dim=1) for values in (states, query_positions))
        return super().forward(*again, *others)


class DividedLayer(DecoderLayer):
    """The last `num_alone` queries have no self-attention, nor the norm behind it; all else is done for all at once."""

    num_alone = 0

    def forward(
        self, states, query_positions, memory, memory_with_positions, query_mask, memory_mask, attend
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        together = states.shape[1] - self.num_alone
        states, alone = states[:, :together], states[:, together:]
        with_positions = states + query_positions[:, :together]
        attended, self_weights = self.self_attn(with_positions, with_positions, states, query_mask, attend)
        states = torch.cat((self.self_attn_layer_norm(states + self._drop(attended)), alone), dim=1)
        attended, cross_weights = self.encoder_attn(
            states + query_positions, memory_with_positions, memory, memory_mask, attend
        )
        states = self.encoder_attn_layer_norm(states + self._drop(attended))
        return self._feed_forward(states), self_weights, cross_weights


@torch.no_grad()
def assign_to_many(logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, settings: dict) -> Tensor:
    """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4) -> (L, B, Q) int64, the object of each query, or N for none.

    Of several objects that claim a query the one it fits best has it.
    """
    num_layers, batch_size, num_queries, _ = logits.shape
    none, image = targets.num_boxes, targets.image_index
    owner = torch.full((num_layers, batch_size, num_queries), none, device=logits.device)
    if not none:
        return owner
    probability = logits.softmax(-1).transpose(-1, -2)[:, image, targets.class_labels]  # (L, N, Q)
    overlap = iou(cxcywh_to_xyxy(boxes_cxcywh[:, image]), cxcywh_to_xyxy(targets.boxes_cxcywh[:, None]))
    share = settings["many_iou_share"]
    quality = share * overlap + (1 - share) * probability
    best, queries = quality.topk(min(settings["many_k"], num_queries), dim=-1)
    is_good = best >= settings["many_threshold"]
    is_good[..., 0] = True
    claims = torch.full_like(quality, -1.0).scatter_(2, queries, torch.where(is_good, best, -1.0))
    index = image[None, :, None].expand_as(claims)
    highest = claims.new_full(owner.shape, -1.0).scatter_reduce(1, index, claims, "amax")
    wins = (claims >= 0) & (claims == highest[:, image])
    numbers = torch.where(wins, torch.arange(none, device=logits.device)[:, None], none)
    return owner.scatter_reduce(1, index, numbers, "amin")


def to_many_loss(
    criterion: SetCriterion, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, settings: dict
) -> Tensor:
    """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4) -> (), the sum over layers of what `criterion` wants of matched
    and other queries: the classes a weighted mean over all queries, the boxes a mean over the matched ones."""
    owner = assign_to_many(logits, boxes_cxcywh, targets, settings)
    is_matched = (owner < targets.num_boxes).to(logits.dtype)
    count = is_matched.sum((1, 2)).clamp(min=1)  # (L,)
    labels = torch.cat((targets.class_labels, targets.class_labels.new_zeros(1)))[owner]
    wanted = torch.cat((targets.boxes_cxcywh, targets.boxes_cxcywh.new_full((1, 4), 0.5)))[owner]
    l1 = (boxes_cxcywh - wanted).abs().sum(-1)
    corners, wanted = cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(wanted)
    of_boxes = criterion.bbox_loss_coefficient * l1 + criterion.giou_loss_coefficient * (1 - giou(corners, wanted))
    owed = is_matched  # to the class; the rest to "no object"
    if criterion.iou_aware_classification:
        owed = is_matched * iou(corners, wanted).detach().sqrt()
    log_probabilities = logits.log_softmax(-1)
    of_label = log_probabilities.gather(-1, labels[..., None])[..., 0]
    empty_weight = criterion.eos_coefficient
    of_classes = -(owed * of_label + empty_weight * (1 - owed) * log_probabilities[..., -1])
    weights = (is_matched + empty_weight * (1 - is_matched)).sum((1, 2))
    return (of_classes.sum((1, 2)) / weights + (of_boxes * is_matched).sum((1, 2)) / count).sum()


@dataclass(frozen=True)
class RepeatingCriterion(SetCriterion):
    """Matches up to `repeats` queries with each object. Denoising queries and cells have their objects once."""

    repeats: int = 1

    def losses(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        targets: Targets,
        *,
        noised=None,
        cells=None,
        query_groups=1,
        **others,
    ) -> SetLosses:
        matched = logits.shape[2] - (0 if noised is None else noised.class_labels.shape[1])
        several = repeated(targets, self.repeats, matched // query_groups)
        first = (logits[:, :, :matched], boxes_cxcywh[:, :, :matched])
        losses = super().losses(*first, several, query_groups=query_groups, **others)
        parts, loss, num_boxes = losses.parts, losses.loss, max(targets.num_boxes, 1)
        with torch.autocast(logits.device.type, enabled=False):
            if noised is not None:
                rest = (logits[:, :, matched:], boxes_cxcywh[:, :, matched:])
                parts["loss_denoising"] = self._weighted(denoising_losses(*rest, noised, num_boxes)).sum()
                loss = loss + parts["loss_denoising"]
            if cells is not None:
                parts["loss_encoder"] = self._weighted(encoder_loss(cells, targets, num_boxes, len(targets.sizes)))
                loss = loss + parts["loss_encoder"]
        return replace(losses, loss=loss)


def repeated(targets: Targets, repeats: int, num_queries: int) -> Targets:
    """Each object `repeats` times, or as often as its image's queries allow, but once at least."""
    times = [max(1, min(repeats, num_queries // max(size, 1))) for size in targets.sizes]
    stops = np.cumsum(targets.sizes)
    runs = [
        np.tile(np.arange(stop - size, stop), count)
        for stop, size, count in zip(stops, targets.sizes, times, strict=True)
    ]
    index = to_device(np.concatenate([*runs, np.zeros(0, np.int64)]).astype(np.int64), targets.class_labels.device)
    return replace(
        targets,
        class_labels=targets.class_labels[index],
        boxes_cxcywh=targets.boxes_cxcywh[index],
        image_index=targets.image_index[index],
        sizes=tuple(size * count for size, count in zip(targets.sizes, times, strict=True)),
    )
