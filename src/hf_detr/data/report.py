"""What a data set holds and what is wrong with it, to read and as JSON."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from statistics import mean, median
from typing import Any

from ..wording import counted, printable
from .formats.base import Problem

_SHOWN = 5  # examples of one kind of problem in the text; `problems` and `to_dict` have all
_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits, square pixels


@dataclass
class Spread:
    """Least, middle, average and greatest of some numbers; zeros where there are none."""

    min: float = 0
    median: float = 0
    mean: float = 0
    max: float = 0

    @classmethod
    def of(cls, values: list) -> "Spread":
        """The spread of these numbers."""
        return cls(min(values), median(values), round(mean(values), 2), max(values)) if values else cls()

    def __str__(self) -> str:
        return f"{self.min:g} to {self.max:g}, median {self.median:g}"


@dataclass
class SplitSummary:
    """Counts of one split; sizes in pixels, a box's size being the root of its area. `images_that_lost_all` of those
    without objects have some that could not be read."""

    images: int = 0
    images_without_objects: int = 0
    images_that_lost_all: int = 0
    objects: int = 0
    crowds: int = 0
    masks: int = 0
    bad_boxes: int = 0
    objects_by_class: dict[str, int] = field(default_factory=dict)
    objects_per_image: Spread = field(default_factory=Spread)
    image_width_px: Spread = field(default_factory=Spread)
    image_height_px: Spread = field(default_factory=Spread)
    box_size_px: Spread = field(default_factory=Spread)
    small_medium_large: tuple[int, int, int] = (0, 0, 0)


def size_classes(areas_px: list[float]) -> tuple[int, int, int]:
    """How many are small (below 32 x 32 pixels), medium (below 96 x 96) and large, as COCO counts."""
    small, large = sum(area < _SMALL for area in areas_px), sum(area >= _MEDIUM for area in areas_px)
    return small, len(areas_px) - small - large, large


@dataclass
class Report:
    """What `check_dataset` found: `splits` by name, and `problems`, each with severity, kind, split, place, message."""

    source: str
    format: str
    classes: list[str]
    original_ids: list[int]
    num_queries: int
    splits: dict[str, SplitSummary]
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """Problems that stop a training or make it learn something false."""
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems worth a look."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def text(self, queries_of: str | None = None) -> str:
        """The report to read; of each kind of problem the first few. `queries_of` says beside `num_queries` whose
        number that is."""
        queries = f"num_queries={self.num_queries}" + (f" ({queries_of})" if queries_of else "")
        lines = [f"{self.source} ({self.format}), {counted(len(self.classes), 'class', 'classes')}"]
        for split, summary in self.splits.items():
            small, medium, large = summary.small_medium_large
            most, lost = summary.objects_per_image.max, summary.images_that_lost_all
            verdict = "enough" if most <= self.num_queries else "NOT ENOUGH"
            lines += [
                "",
                f"{split}: {counted(summary.images, 'image')}, {counted(summary.objects, 'object')}"
                + (f" ({summary.crowds:,} of them crowds)" if summary.crowds else "")
                + (f", {counted(summary.masks, 'mask')}" if summary.masks else "")
                + f", {counted(summary.images_without_objects, 'image')} without objects"
                + (f" ({lost:,} of them because all of theirs are at fault, see below)" if lost else ""),
                f"  image width   {summary.image_width_px} px",
                f"  image height  {summary.image_height_px} px",
                f"  box size      {summary.box_size_px} px; {small:,} small, {medium:,} medium, {large:,} large",
                f"  objects/image {summary.objects_per_image}; {queries} is {verdict}",
            ]
        lines += ["", *self._class_table(), "", *self._problem_lines()]
        return "\n".join(lines)

    def _class_table(self) -> list[str]:
        names = {name: printable(name) for name in self.classes}
        left = max([len(name) for name in names.values()] + [len("objects of class")]) + 2
        widths = {split: max(len(split), 9) + 2 for split in self.splits}
        lines = ["objects of class".ljust(left) + "".join(split.rjust(width) for split, width in widths.items())]
        for name in names:
            counts = (f"{self.splits[split].objects_by_class.get(name, 0):,}".rjust(widths[split]) for split in widths)
            lines.append(names[name].ljust(left) + "".join(counts))
        return lines

    def _problem_lines(self) -> list[str]:
        if not self.problems:
            return ["no problems"]
        lines = [f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}"]
        groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            groups[problem.severity, problem.kind].append(problem)
        for (severity, kind), problems in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
            by_split = Counter(problem.split or "all" for problem in problems)
            counts = ", ".join(f"{split} {count:,}" for split, count in by_split.items())
            lines.append(f"{severity}: {kind}: {len(problems):,} ({counts})")
            lines += [f"  {problem.where}: {problem.message}" for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                lines.append(f"  ... and {len(problems) - _SHOWN:,} more")
        return lines
