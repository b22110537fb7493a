"""Class targets that know the box, for the measurement alone: they are not in the package.

The target of a matched query is its class by as much as its box overlaps the object's (IoU), and "no object" by the
rest. `install` changes this process's hf_detr.
"""

from torch import Tensor

from hf_detr.boxes import cxcywh_to_xyxy, iou
from hf_detr.loss import criterion
from hf_detr.loss.matcher import Matches
from hf_detr.loss.targets import Targets

# L decoder layers, B images, Q queries, M matches of one layer, C classes


def install() -> None:
    boxes_of, classification_of = criterion._boxes, criterion._classification
    overlap: list[Tensor] = []  # of the call that is going on: the boxes come first

    def boxes(boxes_cxcywh: Tensor, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor]:
        index = matches.query[..., None].expand(-1, -1, 4)
        predicted = boxes_cxcywh.detach().flatten(1, 2).gather(1, index)  # (L, M, 4)
        overlap[:] = [iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(targets.boxes_cxcywh[matches.target]))]
        return boxes_of(boxes_cxcywh, targets, matches)

    def classification(logits: Tensor, targets: Targets, matches: Matches, eos_coefficient: float) -> Tensor:
        losses = classification_of(logits, targets, matches, eos_coefficient)
        index = matches.query[..., None].expand(-1, -1, logits.shape[-1])
        matched = logits.flatten(1, 2).gather(1, index)  # (L, M, C + 1)
        labels = targets.class_labels[matches.target]
        # the log-probabilities' common term falls out of their difference
        difference = matched.gather(2, labels[..., None])[..., 0] - matched[..., -1]
        return losses + ((1 - overlap[0]) * difference).sum(1)

    criterion._boxes, criterion._classification = boxes, classification
