"""Panoptic quality: how well segments that share out the pixels of an image match the true ones.

Kirillov et al., "Panoptic Segmentation", CVPR 2019; the numbers are those of COCO's panopticapi. hotcoco counts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask as coco_mask
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray

from ..data.masks import SegmentFiles, decode_segmentation
from ..data.targets import columns_of
from .images import ImageEvaluator
from .reading import read_image_id, to_host
from .report import format_panoptic_table

# S segments of one image

_LABEL_KEYS = ("label", "label_id", "category_id", "category")
_GROUPS = {"": "All", "_things": "Things", "_stuff": "Stuff"}


class Segments(NamedTuple):
    """The segments of one image; no two share a pixel."""

    size_hw: tuple[int, int]
    labels: NDArray  # (S,) int64
    crowds: NDArray  # (S,) bool: regions that are not counted
    things: NDArray  # (S,) bool
    counts: tuple[bytes, ...]  # COCO's compressed run-length encodings


class Image(NamedTuple):
    """What the evaluation keeps of an image."""

    found: Segments
    truth: Segments


class PanopticEvaluator(ImageEvaluator):
    """Panoptic, segmentation and recognition quality (PQ = SQ x RQ) of all, things, stuff and each class.

    `class_names`: names by class id, as a list or {id: name}; None takes labels as they come. `stuff`: the ids of the
    classes that are no things (the model's `label_ids_to_fuse`); None: what the targets say with `is_thing`.

        evaluator = PanopticEvaluator(model.config.id2label)
        for batch in loader:
            results = processor.post_process_panoptic_segmentation(model(...), target_sizes=...)
            evaluator.update(results, batch["targets"])
        print(evaluator.table())

    A found and a true segment of one class match where their IoU is above 0.5. Pixels that belong to no true segment
    are left out, and so is what lies mostly on them or on a crowd of its class.
    """

    def __init__(
        self,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        stuff: Collection[int] | None = None,
    ):
        self.stuff = None if stuff is None else {int(label) for label in stuff}
        super().__init__(class_names)

    def update(self, predictions: Sequence[Mapping], targets: Sequence[Mapping]) -> None:
        """Take in a batch: one result dict and one target an image, in the same order.

        `predictions`: {segmentation (H, W) ids, segments_info [{id, label_id}]}, as
        `post_process_panoptic_segmentation` gives them; several dicts of one id, which were fused, are one segment.
        `targets`, each with its `image_id`: {segmentation (H, W) ids, segments_info [{id, label or category_id, and
        perhaps is_thing, iscrowd}]}; or rows {objects {category, segmentation, and perhaps is_thing, iscrowd}}, whose
        masks are the segments. Ids up to 0 are no segment.

        An image that comes again with the same segments counts once. Raises ValueError with the image id for sizes
        that differ, pixels whose id no dict has, dicts without pixels, objects that share pixels, a class that is a
        thing here and stuff there, and labels outside `class_names`.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"{len(predictions)} results for {len(targets)} targets; give one of each an image, in the same order."
            )
        predictions = to_host(predictions, ("segmentation", "segments_info"))
        keys = ("image_id", "segmentation", "segments_info", "objects", "annotations", "width", "height")
        read = []
        for position, (result, target) in enumerate(zip(predictions, to_host(targets, keys), strict=True)):
            image_id = read_image_id(target, position)
            place = f"image {image_id}"
            found = read_segments(result, f"{place}: the prediction")
            image = Image(found, read_truth(target, found.size_hw, f"{place}: the target"))
            self._check(image, place)
            read.append((image_id, image))
        self._take(read)

    def compute(self) -> dict:
        """The metrics, as floats in [0, 1], and -1 where there is nothing to measure.

        pq, sq, rq, and of things and stuff pq_things, pq_stuff, ..., means over the classes that occur; num_images,
        num_targets (crowds not counted), num_crowds, num_segments (found), num_duplicates; per_class {name: pq, sq,
        rq, is_thing, num_targets, num_segments}. Of this process's images alone, unless
        `synchronize_between_processes` went before.
        """
        return super().compute()

    def table(self) -> str:
        """The metrics as plain text: a summary, and a row a class."""
        return format_panoptic_table(self.compute())

    def post_process(self, processor: Any, outputs: Any, target_sizes: Any, processed_sizes: Any) -> list[dict]:
        """The results that `update` takes, of a model's outputs."""
        return processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.5,  # whatever was saved with the model: its quality stays one number
            label_ids_to_fuse=self.stuff,
            target_sizes=target_sizes,
            processed_sizes=processed_sizes,
        )

    def _check(self, image: Image, place: str) -> None:
        for name, segments in (("a found segment", image.found), ("a target", image.truth)):
            self._check_labels(segments.labels.tolist(), f"{place}: {name}")
        if image.found.size_hw != image.truth.size_hw:
            raise ValueError(
                f"{place}: the predicted map is {image.found.size_hw} and the true one {image.truth.size_hw} (height, "
                "width); give post_process_panoptic_segmentation the original sizes as target_sizes."
            )

    def _same_truth(self, image: Image, other: Image) -> bool:
        known, new = image.truth, other.truth
        return np.array_equal(known.labels, new.labels) and known.counts == new.counts

    def _evaluate(self) -> dict:
        images = self._in_order()
        names = self._class_names(label for image in images for segments in image for label in segments.labels.tolist())
        stuff = _stuff_of(images) if self.stuff is None else self.stuff
        categories = [{"id": k, "name": name, "isthing": int(k not in stuff)} for k, name in names.items()]
        sized = [
            {"id": n, "height": one.truth.size_hw[0], "width": one.truth.size_hw[1]} for n, one in enumerate(images)
        ]
        truth, found = (
            {"images": sized, "categories": categories, "annotations": _as_coco(segments)}
            for segments in ([one.truth for one in images], [one.found for one in images])
        )
        num_targets = _counts_by_class(one.truth.labels[~one.truth.crowds] for one in images)
        num_segments = _counts_by_class(one.found.labels for one in images)
        measured = _measured(truth, found)
        result: dict[str, Any] = {}
        for suffix, group in _GROUPS.items():
            result |= {f"{key}{suffix}": value for key, value in _three(measured.get(group)).items()}
        result |= {
            "num_images": len(images),
            "num_targets": sum(num_targets.values()),
            "num_crowds": sum(int(one.truth.crowds.sum()) for one in images),
            "num_segments": sum(num_segments.values()),
            "num_duplicates": self.num_duplicates,
        }
        result["per_class"] = {
            name: _three(measured["per_class"].get(k))
            | {
                "is_thing": k not in stuff,
                "num_targets": num_targets.get(k, 0),
                "num_segments": num_segments.get(k, 0),
            }
            for k, name in names.items()
        }
        return result


def _measured(truth: dict, found: dict) -> dict:
    if not truth["annotations"] and not found["annotations"]:
        return {"per_class": {}}
    evaluation = PanopticEval(truth, found)
    evaluation.evaluate()
    return evaluation.results()


def _three(scores: Mapping | None) -> dict[str, float]:
    return {key: -1.0 if scores is None else float(scores[key]) for key in ("pq", "sq", "rq")}


def _stuff_of(images: Iterable[Image]) -> set[int]:
    """The classes of true segments that are no things. Raises ValueError for one that is both."""
    seen = {
        (label, thing)
        for one in images
        for label, thing in zip(one.truth.labels.tolist(), one.truth.things.tolist(), strict=True)
    }
    stuff = {label for label, thing in seen if not thing}
    both = sorted(stuff & {label for label, thing in seen if thing})
    if both:
        raise ValueError(
            f"the classes {both} are things in some targets and stuff in others; give stuff=... to decide."
        )
    return stuff


def _as_coco(segments: Sequence[Segments]) -> list[dict]:
    """COCO annotations, images by their number."""
    annotations = []
    for number, one in enumerate(segments):
        for label, crowd, counts in zip(one.labels.tolist(), one.crowds.tolist(), one.counts, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "iscrowd": int(crowd),
                    "segmentation": {"size": list(one.size_hw), "counts": counts.decode("ascii")},
                }
            )
    return annotations


def _counts_by_class(labels: Iterable[NDArray]) -> dict[int, int]:
    every = list(labels)
    found, counts = np.unique(np.concatenate(every) if every else np.zeros(0, np.int64), return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def read_truth(target: Mapping, size_hw: tuple[int, int], place: str) -> Segments:
    """The segments of a target in any form that `PanopticEvaluator.update` takes.

    `size_hw` is of an image whose `height` and `width` are not given. Errors name `place`.
    """
    if "segments_info" in target:
        return read_segments(target, place)
    key = next((key for key in ("objects", "annotations") if key in target), None)
    if key is None:
        raise ValueError(f"{place} needs 'segmentation' and 'segments_info', or 'objects'; got {', '.join(target)}.")
    columns = columns_of(target[key], place)
    if "segmentation" not in columns:
        raise ValueError(f"{place} has no objects.segmentation; load the data with its masks.")
    if target.get("height") and target.get("width"):
        size_hw = (int(target["height"]), int(target["width"]))
    labels = columns["category_id" if "category_id" in columns else "category"]
    files, seen, masks = SegmentFiles(), np.zeros(size_hw, bool), []
    for i, entry in enumerate(columns["segmentation"]):
        mask = decode_segmentation(entry, size_hw, f"{place}: object {i}", files)
        if (seen & mask.astype(bool)).any():
            raise ValueError(f"{place}: object {i} shares pixels with another; panoptic truth has one object a pixel.")
        seen |= mask.astype(bool)
        masks.append(mask)
    flags = [columns.get("iscrowd", [0] * len(masks)), columns.get("is_thing", [True] * len(masks))]
    return _segments(size_hw, labels, *flags, masks)


def read_segments(target: Mapping, place: str) -> Segments:
    """A map of ids and the dict of each id -> its segments, whose errors name `place`; ids up to 0 are none."""
    missing = [key for key in ("segmentation", "segments_info") if key not in target]
    if missing:
        raise ValueError(f"{place} lacks {' and '.join(missing)}; give those of post_process_panoptic_segmentation.")
    ids = np.asarray(target["segmentation"])
    if ids.ndim != 2:
        raise ValueError(f"{place}: segmentation must be a map (H, W) of ids, got shape {ids.shape}.")
    infos: dict[int, Mapping] = {}
    for info in target["segments_info"]:
        known = infos.setdefault(int(info["id"]), info)
        if _label(known, place) != _label(info, place):
            raise ValueError(f"{place}: segment {info['id']} has two classes; give every segment an id of its own.")
    in_map = set(np.unique(ids[ids > 0]).astype(int).tolist())
    if in_map != set(infos):
        raise ValueError(
            f"{place}: ids of the map without segments_info: {sorted(in_map - set(infos))}; of segments_info without "
            f"a pixel: {sorted(set(infos) - in_map)}; each needs the other."
        )
    return _segments(
        ids.shape,
        [_label(info, place) for info in infos.values()],
        [info.get("iscrowd", 0) for info in infos.values()],
        [info.get("is_thing", info.get("isthing", True)) for info in infos.values()],
        [ids == number for number in infos],
    )


def _label(info: Mapping, place: str) -> int:
    key = next((key for key in _LABEL_KEYS if key in info), None)
    if key is None:
        raise ValueError(f"{place}: a segment has no label; expected one of {', '.join(_LABEL_KEYS)} in {dict(info)}.")
    return int(info[key])


def _segments(size_hw: Sequence[int], labels: Any, crowds: Any, things: Any, masks: Sequence[NDArray]) -> Segments:
    rles = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return Segments(
        (int(size_hw[0]), int(size_hw[1])),
        np.array(labels, dtype=np.int64).reshape(-1),
        np.array([bool(crowd) for crowd in crowds], dtype=bool),
        np.array([thing is None or bool(thing) for thing in things], dtype=bool),
        tuple(rle["counts"] for rle in rles),
    )
