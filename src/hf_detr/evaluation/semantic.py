"""Semantic segmentation: the class of each pixel against the true one. hotcoco counts, as mmsegmentation does."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hotcoco import mask as coco_mask
from hotcoco.metrics import mean_iou, pixel_confusion
from numpy.typing import NDArray

from .images import ImageEvaluator
from .panoptic import read_truth
from .reading import read_image_id, to_host
from .report import format_semantic_table

# C classes

_TARGET_KEYS = ("image_id", "segmentation", "objects", "annotations", "width", "height")


class Image(NamedTuple):
    """The pixels of one image by true and found class, where there are any."""

    pairs: NDArray  # (N,) int64: true * C + found
    pixels: NDArray  # (N,) int64


class SemanticEvaluator(ImageEvaluator):
    """Mean IoU of class maps over a data set, from the pixels of all images together.

    `class_names`: names by class id, as a list or {id: name} from 0 without gaps. `ignore_index`: the class of true
    pixels that are not counted.
    """

    def __init__(self, class_names: Sequence[str] | Mapping[int, str], ignore_index: int = 255):
        super().__init__(class_names)
        if list(self._names) != list(range(len(self._names))) or not self._names:
            raise ValueError(f"class_names has the ids {sorted(self._names)}; expected every id from 0 on.")
        self.ignore_index = ignore_index

    def update(self, predictions: Sequence[Any], targets: Sequence[Mapping]) -> None:
        """Take in a batch: one map (H, W) of classes and one target an image, in the same order.

        `predictions`: as `post_process_semantic_segmentation` gives them. `targets`: {image_id,
        segmentation (H, W)}, or rows {image_id, objects {category, segmentation}}, whose masks are the classes' pixels.
        An image that comes again with the same true pixels counts once. Raises ValueError with the image id for sizes
        that differ and for classes out of range.
        """
        if len(predictions) != len(targets):
            raise ValueError(
                f"{len(predictions)} maps for {len(targets)} targets; give one of each an image, in the same order."
            )
        maps = to_host([{"segmentation": one} for one in predictions], ("segmentation",))
        read = []
        for position, (result, target) in enumerate(zip(maps, to_host(targets, _TARGET_KEYS), strict=True)):
            image_id = read_image_id(target, position)
            place = f"image {image_id}"
            found = np.asarray(result["segmentation"])
            truth = (
                np.asarray(target["segmentation"]) if "segmentation" in target else self._painted(target, found, place)
            )
            if found.ndim != 2 or found.shape != truth.shape:
                raise ValueError(
                    f"{place}: the found map is {found.shape} and the true one {truth.shape} (height, width); give "
                    "post_process_semantic_segmentation the original sizes as target_sizes."
                )
            counted = truth != self.ignore_index
            for name, labels in (("a target", truth[counted]), ("the prediction", found)):
                extremes = {int(labels.min()), int(labels.max())} if labels.size else set()  # ids have no gaps
                self._check_labels(extremes, f"{place}: {name}")
            num_classes = len(self._names)
            confusion = pixel_confusion(truth, found, num_classes, ignore_index=self.ignore_index).ravel()
            pairs = np.flatnonzero(confusion)
            read.append((image_id, Image(pairs, confusion[pairs].astype(np.int64))))
        self._take(read)

    def compute(self) -> dict:
        """The metrics, as floats in [0, 1], and -1 where there is nothing to measure.

        miou, fwiou (weighted by the classes' pixels), macc, aacc; num_images, num_duplicates; per_class {name: iou,
        acc, num_pixels}. Of this process's images alone, unless `synchronize_between_processes` went before.
        """
        return super().compute()

    def table(self) -> str:
        """The metrics as plain text: a summary, and a row a class."""
        return format_semantic_table(self.compute())

    def post_process(self, processor: Any, outputs: Any, target_sizes: Any, processed_sizes: Any) -> list[Any]:
        """The maps that `update` takes, of a model's outputs."""
        return processor.post_process_semantic_segmentation(outputs, target_sizes, processed_sizes=processed_sizes)

    def _painted(self, row: Mapping, found: NDArray, place: str) -> NDArray:
        """The map (H, W) of true classes of a row of the data set."""
        segments = read_truth(row, found.shape, f"{place}: the target")
        truth = np.full(segments.size_hw, self.ignore_index)
        for label, counts in zip(segments.labels.tolist(), segments.counts, strict=True):
            truth[coco_mask.decode({"size": list(segments.size_hw), "counts": counts}).astype(bool)] = label
        return truth

    def _check(self, image: Image, place: str) -> None:
        if image.pairs.size and image.pairs.max() >= len(self._names) ** 2:
            raise ValueError(f"{place}: comes from an evaluator with more classes than {len(self._names)}.")

    def _same_truth(self, image: Image, other: Image) -> bool:
        return np.array_equal(*(self._true_pixels([one]) for one in (image, other)))

    def _confusion(self, images: Sequence[Image]) -> NDArray:
        """(C, C) pixels, a row a true class."""
        num_classes = len(self._names)
        total = np.zeros(num_classes**2, dtype=np.uint64)
        for image in images:
            total[image.pairs] += image.pixels.astype(np.uint64)
        return total.reshape(num_classes, num_classes)

    def _true_pixels(self, images: Sequence[Image]) -> NDArray:
        return self._confusion(images).sum(1)

    def _evaluate(self) -> dict:
        images = self._in_order()
        confusion = self._confusion(images)
        measured = mean_iou(confusion)
        result: dict[str, Any] = {name.lower(): _value(measured[name]) for name in ("mIoU", "fwIoU", "mAcc", "aAcc")}
        result |= {"num_images": len(images), "num_duplicates": self.num_duplicates}
        columns = zip(measured["IoU"], measured["Acc"], confusion.sum(1).tolist(), strict=True)
        result["per_class"] = {
            name: {"iou": _value(iou), "acc": _value(acc), "num_pixels": int(pixels)}
            for name, (iou, acc, pixels) in zip(self._names.values(), columns, strict=True)
        }
        return result


def _value(number: float) -> float:
    return float(number) if np.isfinite(number) else -1.0
