"""Images without annotations, labelled by a teacher: rows for the training set, and counts of what was found."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from torchvision.ops import nms

from ..boxes import cxcywh_to_xyxy, xyxy_to_xywh
from ..data.transform import decode_image
from ..wording import counted
from .teacher import Teacher

THRESHOLD = 0.7  # of a label's probability; what is taken for granted afterwards should be sure
_SAME_OBJECT_IOU = 0.7  # of two detections, the surer one stays


@dataclass
class LabelledImages:
    """What became of the images.

    Attributes:
        rows: in the schema, of the images in which something was found.
        threshold: what a detection had to score above.
        objects: of each class with its name, most first.
        empty, unreadable: images in which nothing was found, and those that could not be read; neither has a row.
    """

    rows: Dataset
    threshold: float
    objects: dict[str, int] = field(default_factory=dict)
    empty: int = 0
    unreadable: int = 0

    @property
    def counts(self) -> dict[str, Any]:
        """All but the rows."""
        counts = {"images": len(self.rows), "objects": self.objects, "empty": self.empty}
        return {"threshold": self.threshold, **counts, "unreadable": self.unreadable}

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count:,}" for name, count in self.objects.items())
        text = f"{counted(len(self.rows), 'image')} with {counted(sum(self.objects.values()), 'object')} above "
        text += f"{self.threshold:g}" + (f" ({classes})" if classes else "")
        text += f"; left out: {counted(self.empty, 'image')} in which nothing was found"
        return text + (f", {counted(self.unreadable, 'image')} that could not be read" if self.unreadable else "")


def label_images(
    teacher: Teacher, files: Iterable[Path], features: Features, first_id: int = 0, threshold: float = THRESHOLD
) -> LabelledImages:
    """Looks at image files one by one.

    A query is a detection where the probability of one of the student's classes is above `threshold`; of detections
    that lie on one another (IoU above 0.7) the surest stays. `features`: those of the rows to be joined with; columns
    of objects that a teacher does not know (masks) are None. Images get the ids `first_id`, `first_id` + 1, ...

    Raises ValueError for a threshold outside [0, 1), and where the teacher answers with NaN.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold!r} is not a probability in [0, 1).")
    columns = features["objects"].feature if hasattr(features["objects"], "feature") else features["objects"]
    rows: list[dict[str, Any]] = []
    counts: Counter[int] = Counter()
    empty = unreadable = next_object = 0
    for file in files:
        row = {"image": {"path": str(file), "bytes": None}, "image_id": first_id + len(rows)}
        try:
            image = decode_image(row).convert("RGB")
        except ValueError:
            unreadable += 1
            continue
        labels, boxes_xywh_px = _detections(teacher, image, file, threshold)
        if not labels:
            empty += 1
            continue
        known = {
            "id": list(range(next_object, next_object + len(labels))),
            "bbox": boxes_xywh_px,
            "category": labels,
            "area": [width * height for _, _, width, height in boxes_xywh_px],
            "iscrowd": [0] * len(labels),
            "is_thing": [True] * len(labels),
        }
        objects = {name: known.get(name, [None] * len(labels)) for name in columns}
        rows.append({**row, "width": image.width, "height": image.height, "objects": objects})
        counts.update(labels)
        next_object += len(labels)
    table = {name: [row[name] for row in rows] for name in ("image", "image_id", "width", "height", "objects")}
    objects = {teacher.id2label[label]: count for label, count in counts.most_common()}
    return LabelledImages(Dataset.from_dict(table, features=features), threshold, objects, empty, unreadable)


def _detections(teacher: Teacher, image: Any, file: Path, threshold: float) -> tuple[list[int], list[list[float]]]:
    sight = teacher.look([image], [file])
    scores, labels = sight.probabilities[0, :, :-1].max(-1)
    kept = (scores > threshold).nonzero().flatten()
    sides = scores.new_tensor([image.width, image.height] * 2)
    corners_px = cxcywh_to_xyxy(sight.boxes_cxcywh[0, kept]).clamp(0, 1) * sides
    best = nms(corners_px, scores[kept], _SAME_OBJECT_IOU)
    best = best[(corners_px[best, 2:] - corners_px[best, :2]).amin(-1) >= 1]  # a box of less than a pixel is none
    return labels[kept[best]].tolist(), xyxy_to_xywh(corners_px[best]).tolist()
