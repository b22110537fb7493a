"""A trained detector as a teacher: what it sees in the images of a training step, in the classes of the student.

Any model that `AutoModelForObjectDetection` loads: nothing is asked of it but logits, boxes, names of its classes and
an image processor. It sees what the student sees, augmentations included, at the size of its own processor.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from ..configuration_detr import DetrConfig
from ..evaluation.batches import unpadded
from ..image_processing_detr import DetrImageProcessor
from ..modeling_detr import DetrForObjectDetection
from ..modeling_detr_segmentation import DetrForSegmentation

# B images, Q queries of the teacher, S of them that saw something, C classes of the student; class C is "no object"

_LEAST = 0.1  # a query that is less sure of an object says nothing
PAIRINGS = ("by query", "matched")
# whose queries are learned, and not chosen from the image
_OWN_QUERIES = ("detr", "conditional_detr", "dab-detr", "table-transformer")
_REMEDY = "name a folder or a Hub name with config.json, weights and preprocessor_config.json of an object detector"


@dataclass(frozen=True)
class Sight:
    """What a teacher says of a batch.

    Attributes:
        probabilities: (B, Q, C + 1), the last is "no object" and what else is no class of the student.
        boxes_cxcywh: (B, Q, 4) in [0, 1] of the visible image.
    """

    probabilities: Tensor
    boxes_cxcywh: Tensor


class Teacher:
    """A trained detector, in eval mode, that no optimizer and no checkpoint knows of.

    Args:
        source: a folder or a name on the Hub.
        id2label: the student's classes. The teacher's are found in them by name, capitals aside.
        device: where it computes.

    Raises:
        ValueError: no detector or no image processor there, or no class with a name of the student's.
    """

    def __init__(self, source: str, id2label: Mapping[int, str], device: torch.device | str = "cpu"):
        self.source = str(source)
        self.model = _read_model(self.source).eval().requires_grad_(False).to(device)
        self.is_detr = isinstance(self.model, DetrForObjectDetection)
        self.processor = _read_processor(self.source, self.is_detr)
        own = {str(name).casefold(): int(index) for index, name in self.model.config.id2label.items()}
        self.class_of = {index: own.get(str(name).casefold()) for index, name in id2label.items()}  # None: not taught
        self.id2label = dict(id2label)
        if not self.taught:
            raise ValueError(
                f"teacher {self.source}: none of its classes ({_few(self.model.config.id2label.values())}) has the "
                f"name of one of the student's ({_few(id2label.values())}); rename one side's (config.id2label), or "
                "take another teacher."
            )

    @property
    def taught(self) -> list[str]:
        """The names of the student's classes that the teacher has as well."""
        return [self.id2label[index] for index, column in self.class_of.items() if column is not None]

    @torch.no_grad()
    def look(self, images: Sequence[Any], names: Sequence[Any], **options: Any) -> Sight:
        """What it sees in images (C, H, W) that its processor takes with these `options`. `names`: of the images, for
        the ValueError where it answers with NaN or infinity."""
        device = next(self.model.parameters()).device
        inputs = self.processor(images=list(images), return_tensors="pt", **options)
        inputs = {name: inputs[name].to(device) for name in ("pixel_values", "pixel_mask") if name in inputs}
        if "pixel_mask" in inputs and bool(inputs["pixel_mask"].all()):
            del inputs["pixel_mask"]
        # this package's heads compute in float32 whatever the rest does; others' boxes would have eight bits
        with nullcontext() if self.is_detr else torch.autocast(device.type, enabled=False):
            outputs = self.model(**inputs)
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        finite = (logits.isfinite().flatten(1).all(1) & boxes.isfinite().flatten(1).all(1)).tolist()
        if not all(finite):
            name = names[finite.index(False)]
            raise ValueError(
                f"teacher {self.source}: NaN or infinity in what it says of image "
                f"{int(name) if isinstance(name, Tensor) else name}; its weights are damaged or diverged, or the image "
                "is: take another checkpoint."
            )
        return Sight(self._in_classes_of_student(logits), boxes)

    def _in_classes_of_student(self, logits: Tensor) -> Tensor:
        """(B, Q, own classes, perhaps and "no object") -> (B, Q, C + 1) probabilities."""
        own = len(self.model.config.id2label)
        if logits.shape[-1] == own + 1:
            scores = logits.softmax(-1)
        elif logits.shape[-1] == own:
            # one sigmoid a class: the best is how sure it is of an object, their ratios of which
            scores = logits.sigmoid()
            scores = scores * (scores.amax(-1, keepdim=True) / scores.sum(-1, keepdim=True).clamp(min=1e-12))
        else:
            raise ValueError(
                f"teacher {self.source}: {logits.shape[-1]} logits a query for {own} classes; it is no detector with a "
                "softmax (classes + 1) or sigmoids (classes)."
            )
        none = torch.zeros_like(scores[..., 0])
        columns = [none if column is None else scores[..., column] for column in self.class_of.values()]
        of_classes = torch.stack(columns, -1)
        return torch.cat((of_classes, (1 - of_classes.sum(-1, keepdim=True)).clamp(min=0)), -1)


class Lessons:
    """Adds to the labels of a student's batches what a teacher sees in their images.

    Args:
        source: as of `Teacher`.
        config: the student's.
        processor: the student's, whose normalising is undone.
        device: where the teacher computes.
        pairing: "by query": the student's query of a number learns from the teacher's of that number, where both have
            as many that stay themselves from image to image; "matched": from that one that fits best; None: by query
            where that can be.

    Raises:
        ValueError: no processor, or a pairing that cannot be; else as `Teacher`.
    """

    def __init__(
        self,
        source: str,
        config: DetrConfig,
        processor: Any,
        device: torch.device | str = "cpu",
        pairing: str | None = None,
    ):
        self.teacher = Teacher(source, config.id2label, device)
        its = self.teacher.model.config
        can_be = its.model_type in _OWN_QUERIES and its.num_queries == config.num_queries
        if pairing not in (None, *PAIRINGS) or (pairing == "by query" and not can_be):
            raise ValueError(
                f"teacher {source}, pairing {pairing!r}: expected {' or '.join(map(repr, PAIRINGS))}, the first of "
                f"which needs a teacher with {config.num_queries} queries as a DETR has; leave it out."
            )
        self.by_query = can_be and pairing != "matched"
        if not hasattr(processor, "image_mean"):
            raise ValueError(
                f"teacher {source}: the student's image processor is not known, so neither are its images; give the "
                "trainer processing_class, or rows of a DetectionTransform."
            )
        normalises = getattr(processor, "do_normalize", True)
        self.mean = torch.tensor(processor.image_mean if normalises else 0.0, device=device).reshape(-1, 1, 1)
        self.std = torch.tensor(processor.image_std if normalises else 1.0, device=device).reshape(-1, 1, 1)
        factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        self.scale = 1 / (255 * factor)  # of pixels before they are normalised, which lie in [0, 1] with 1 / 255

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of the collator -> the same, its label dicts with `teacher_probabilities` (S, C + 1), `teacher_boxes`
        (S, 4) and, by query, `teacher_queries` (S,) of the teacher's surest queries. Images of one size are looked at
        together, so nothing is padded."""
        labels = [dict(label) for label in batch["labels"]]
        for positions, part in unpadded(dict(batch)):
            names = [label.get("image_id", position) for position, label in zip(positions, part["labels"], strict=True)]
            seen = self.teacher.look(self._images(part["pixel_values"]), names, do_rescale=False)
            is_sure = seen.probabilities[..., -1] < 1 - _LEAST
            for index, position in enumerate(positions):
                labels[position]["teacher_probabilities"] = seen.probabilities[index, is_sure[index]]
                labels[position]["teacher_boxes"] = seen.boxes_cxcywh[index, is_sure[index]]
                if self.by_query:
                    labels[position]["teacher_queries"] = is_sure[index].nonzero().flatten()
        return {**batch, "labels": labels}

    def _images(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> in [0, 1]."""
        pixels = pixel_values.to(self.mean.device, torch.float32)
        return ((pixels * self.std + self.mean) * self.scale).clamp(0, 1)


def _read_model(source: str) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type == "detr":
            masks = "DetrForSegmentation" in (config.architectures or ())
            if masks:
                return DetrForSegmentation.from_pretrained(source).detr
            return DetrForObjectDetection.from_pretrained(source)
        return AutoModelForObjectDetection.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"teacher {source}: {_first_line(error)}; {_REMEDY}.") from error


def _read_processor(source: str, is_detr: bool) -> Any:
    try:
        return (DetrImageProcessor if is_detr else AutoImageProcessor).from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"teacher {source}: it has no image processor ({_first_line(error)}); {_REMEDY}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def _few(names: Any, most: int = 8) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
