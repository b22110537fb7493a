"""`check_dataset`: every problem of a detection data set in one report, before training meets them one by one."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .box_policy import box_problem, look_like_corners, look_like_fractions
from .formats.base import Findings
from .loading import load
from .mask_checks import check_mask
from .masks import MaskError, SegmentFiles
from .report import Report, SplitSummary, Spread, size_classes
from .schema import class_names, original_category_ids
from .verification import Seen, look_at_images, place_of

_UNIONS = ("trainval", "all", "full")  # lists that hold other splits on purpose
_WAYS_OUT = "correct it, or load with on_bad_box='drop' or 'clip'"


def check_dataset(
    source: Any,
    format: str = "auto",
    *,
    num_queries: int | Callable[[list[int]], int] = 100,
    decode_images: bool = True,
    on_bad_box: str = "error",
    on_bad_image: str = "error",
    masks: bool | None = None,
    **options: Any,
) -> Report:
    """Reads a data set (whatever `load_detection_dataset` takes, with its options) and reports what is in it and wrong.

    Found are: missing and corrupt images (fully decoded, those found good once are remembered; `decode_images=False`
    reads headers only) and sizes that differ from the annotated; boxes that are empty, negative, not finite or outside
    their image; boxes that look like corners given as xywh, or like fractions given as pixels; unknown classes, corrupt
    annotations; ids given twice, the same object or image twice, the same image in two splits; classes without objects;
    more objects in an image than `num_queries`; nothing to train on. Images are compared by their bytes. What is an
    error here stops `hf-detr train` before its first step; what `on_bad_box` and `on_bad_image` say is to be dropped or
    clipped is a warning. `num_queries` may be a function that is given the number of objects of each image, crowds left
    out.

    Masks are looked at where there are some: polygons of fewer than three points, encodings that cannot be decoded,
    PNG files that are missing, damaged or of another size, ids that are not in them, empty masks, masks outside their
    image or box. These are warnings, for boxes are learned without; with `masks=True` they are errors, and so is an
    object without a mask. `masks=False` leaves masks aside.

    Raises ValueError only where nothing can be read at all (no data set found, broken JSON or YAML, two classes of
    one name).
    """
    findings = Findings(collect=True, need_masks=bool(masks))
    options |= {"masks": masks is not False}
    loaded = load(source, format, findings, on_bad_box="keep", on_bad_image=on_bad_image, **options)
    names = class_names(loaded.splits)
    report = Report(
        source=str(source) if isinstance(source, (str, Path)) else "data set",
        format=loaded.format,
        classes=names,
        original_ids=original_category_ids(loaded.splits),
        num_queries=0,
        splits={},
        problems=findings.problems,
    )
    images: dict[bytes, list[tuple[str, str]]] = defaultdict(list)  # digest of the file -> (split, place)
    wanted: list[tuple[str, str, int]] = []  # split, place and number of objects of each image
    for split, dataset in loaded.splits.items():
        check = _SplitCheck(split, names, findings, loaded.places, loaded.emptied, on_bad_box, decode_images)
        for row, seen in look_at_images(dataset, decode_images):
            check.add(row, seen)
            if seen.digest:
                images[seen.digest].append((split, place_of(row, split)))
        report.splits[split] = check.finish()
        wanted += check.wanted
    report.num_queries = num_queries([one[2] for one in wanted]) if callable(num_queries) else num_queries
    _report_crowded_images(wanted, report.num_queries, findings)
    _forget_repeated(findings)
    _report_same_images(images, findings)
    _report_classes(report, findings)
    if not options.get("splits"):
        _report_splits(report, findings)
    return report


@dataclass
class _SplitCheck:
    """Collects numbers and problems of one split, row by row."""

    split: str
    names: list[str]
    findings: Findings
    places: dict
    emptied: set
    on_bad_box: str
    decode: bool
    image_ids: dict[int, str] = field(default_factory=dict)
    object_ids: dict[int, str] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    wanted: list[tuple[str, str, int]] = field(default_factory=list)
    boxes: list = field(default_factory=list)
    box_sizes_wh: list = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    by_class: Counter = field(default_factory=Counter)
    crowds: int = 0
    bad: int = 0
    lost_all: int = 0
    masks: int = 0
    without_mask: list[str] = field(default_factory=list)

    def error(self, kind: str, where: str, message: str) -> None:
        """One more error of this split."""
        self.findings.error(kind, where, message, self.split)

    def add(self, row: dict, seen: Seen) -> None:
        """One row, its image having been looked at."""
        place, width, height = place_of(row, self.split), row["width"], row["height"]
        if seen.problem:
            self.error(seen.problem[0], place, seen.problem[1])
        if row["image_id"] in self.image_ids:
            message = f"image_id {row['image_id']} is that of {self.image_ids[row['image_id']]} too; renumber."
            self.error("duplicate id", place, message)
        self.image_ids.setdefault(row["image_id"], place)
        if width and height:
            self.widths.append(width)
            self.heights.append(height)
        self.lost_all += (self.split, row["image_id"]) in self.emptied
        self._add_objects(row, place)
        self._add_masks(row, place)

    def _add_objects(self, row: dict, place: str) -> None:
        objects, width, height = row["objects"], row["width"], row["height"]
        same: Counter = Counter()
        for number, box, category, crowd in zip(
            objects["id"], objects["bbox"], objects["category"], objects["iscrowd"], strict=True
        ):
            where = self._place(row, number, place)
            if number in self.object_ids:
                message = f"annotation id {number} is also that of {self.object_ids[number]}; renumber the annotations."
                self.error("duplicate id", where, message)
            self.object_ids.setdefault(number, place)
            self.crowds += crowd
            self.by_class[category] += 1
            same[tuple(box), category] += 1
            if same[tuple(box), category] == 2:
                message = f"the same box and class ({self.names[category]}) more than once; remove the copies."
                self.findings.warning("duplicate object", where, message, self.split)
            if not (width and height):
                continue  # an unreadable image of unknown size, reported as such
            problem = box_problem(box, width, height)
            if problem != "not finite":
                self.boxes.append(box)
                self.box_sizes_wh.append((width, height))
            if problem:
                self.bad += 1
                numbers = ", ".join(f"{value:g}" for value in box)
                report = self.findings.error if self.on_bad_box in ("error", "keep") else self.findings.warning
                message = f"[{numbers}] (xywh) of {width} x {height} pixels; {_WAYS_OUT}."
                report(f"box: {problem}", where, message, self.split)
            else:
                self.areas.append(box[2] * box[3])
        self.counts.append(len(objects["id"]))
        self.wanted.append((self.split, place, len(objects["id"]) - sum(objects["iscrowd"])))

    def _place(self, row: dict, number: int, place: str) -> str:
        """Where an object of a row stands: in its file, or in the row of `place`."""
        return self.places.get((self.split, row["image_id"], number), f"{place}, object {number}")

    def _add_masks(self, row: dict, place: str) -> None:
        objects, size_hw, files = row["objects"], (row["height"], row["width"]), SegmentFiles()
        segments: set[tuple[str, int]] = set()  # of PNG files
        segmentations = objects.get("segmentation") or [None] * len(objects["id"])
        for number, box, crowd, segmentation in zip(
            objects["id"], objects["bbox"], objects["iscrowd"], segmentations, strict=True
        ):
            where = self._place(row, number, place)
            if segmentation is None:
                self.without_mask += [] if crowd else [where]
                continue
            self.masks += 1
            if not all(size_hw):
                continue  # an unreadable image of unknown size, reported as such
            try:
                check_mask(segmentation, box, size_hw, files if self.decode else None)
                segment = segmentation["file"], segmentation["id"]
                if segment in segments:
                    message = f"the id {segment[1]} in {segment[0]} is that of another object too; correct one of them."
                    raise MaskError("id given twice", message)
                segments |= {segment} if segment[0] else set()
            except MaskError as error:
                self.findings.mask(error, where, self.split)

    def finish(self) -> SplitSummary:
        """What concerns all boxes and masks of the split, and its numbers."""
        where = f"split {self.split!r}"
        if self.without_mask and (self.masks or self.findings.need_masks):
            message = (
                f"{len(self.without_mask)} of {self.masks + len(self.without_mask)} objects have no mask, and masks "
                "cannot be learned from their images; add the masks, or leave the images out."
            )
            self.findings.mask(MaskError("none", message), self.without_mask[0], self.split)
        if look_like_fractions(self.boxes, max((*self.widths, *self.heights), default=0)):
            message = (
                "all boxes are numbers up to 1: fractions, no pixels; load with bbox_format='xywh_fraction' or so."
            )
            self.error("fractions given as pixels", where, message)
        if look_like_corners(self.boxes, self.box_sizes_wh):
            message = (
                "boxes leave their images as left, top, width, height, and all make sense as left, top, right, bottom; "
                "if they are, load with bbox_format='xyxy'."
            )
            self.error("corners given as xywh", where, message)
        if not self.counts:
            self.error("empty split", where, "no images; check the list or folder of this split.")
        return SplitSummary(
            images=len(self.counts),
            images_without_objects=sum(count == 0 for count in self.counts),
            images_that_lost_all=self.lost_all,
            objects=sum(self.counts),
            crowds=self.crowds,
            masks=self.masks,
            bad_boxes=self.bad,
            objects_by_class={name: self.by_class[index] for index, name in enumerate(self.names)},
            objects_per_image=Spread.of(self.counts),
            image_width_px=Spread.of(self.widths),
            image_height_px=Spread.of(self.heights),
            box_size_px=Spread.of([round(area**0.5, 1) for area in self.areas]),
            small_medium_large=size_classes(self.areas),
        )


def _forget_repeated(findings: Findings) -> None:
    """A file and line in train and, again, in trainval has one problem, not two."""
    known = {(one.kind, one.where) for one in findings.problems if one.split not in _UNIONS}
    findings.problems[:] = [
        one for one in findings.problems if one.split not in _UNIONS or (one.kind, one.where) not in known
    ]


def _report_same_images(images: dict[bytes, list[tuple[str, str]]], findings: Findings) -> None:
    for places in images.values():
        by_split: dict[str, list[str]] = defaultdict(list)
        for split, place in places:
            by_split[split].append(place)
        for split, several in by_split.items():
            if len(several) > 1:
                message = f"the same image as {', '.join(several[1:])}; remove the copies."
                findings.warning("duplicate image", several[0], message, split)
        apart = [split for split in by_split if split not in _UNIONS]
        if len(apart) > 1:
            first, *others = apart
            message = f"the same image is in split {first!r} too ({by_split[first][0]}); keep it in one of them."
            for other in others:
                findings.error("leak between splits", by_split[other][0], message, other)


def _report_crowded_images(wanted: list[tuple[str, str, int]], num_queries: int, findings: Findings) -> None:
    for split, place, objects in wanted:
        if objects > num_queries:
            message = (
                f"{objects} objects, more than num_queries={num_queries}: {objects - num_queries} can never be found; "
                f"set num_queries to {objects} or more."
            )
            findings.error("more objects than queries", place, message, split)


def _report_classes(report: Report, findings: Findings) -> None:
    for name in report.classes:
        counts = {split: summary.objects_by_class[name] for split, summary in report.splits.items()}
        if not any(counts.values()):
            findings.warning(
                "class without objects", f"class {name!r}", "no object in any split; remove it, or add some."
            )
        elif counts.get("train") == 0:
            message = f"no object in train, but {counts} elsewhere; it cannot be learned."
            findings.warning("class without objects", f"class {name!r}", message, "train")


def _report_splits(report: Report, findings: Findings) -> None:
    """Whether there is something to train on and something to evaluate on, as `hf-detr train` needs it."""
    if len(report.splits) > 1 and "train" not in report.splits:
        message = f"no split 'train', only {', '.join(report.splits)}; rename one of them, or look at one by --split."
        findings.error("no training split", report.source, message)
    if len(report.splits) == 1 and sum(one.images for one in report.splits.values()) == 1:
        message = "one image is not enough to train and to evaluate; add some."
        findings.error("too few images", report.source, message)
