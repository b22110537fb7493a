"""Settings of a training that the user leaves open, from the data, the start and the machine: one rule a setting.

A rule is a pure function from facts to a value and the reason for it; `RULES` has them in the order in which they build
on each other. Whatever is given stays as it is, and the rules after it build on that. Every number of the rules stands
at the top of this file with where it comes from.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.schema import class_names
from ..wording import counted

# -- queries ----------------------------------------------------------------------------------------------------------
PUBLISHED_QUERIES = 100  # of the published checkpoints
KEPT_MARGIN = 1.25  # a start keeps its queries while they are so many times the 99th percentile of objects an image
# The paper, appendix: 100 queries find all of up to 50 objects, and begin to miss some beyond.
NEW_MARGIN = 2.0
FEWEST_QUERIES = 20  # of a fresh model; more cost little (docs/fine-tuning.md)
MOST_QUERIES = 900  # attention among queries grows with their square; images with more objects are better cut in tiles

# -- images -----------------------------------------------------------------------------------------------------------
LARGEST_EDGE_PX = 800  # of the paper
LEAST_EDGE_PX = 480  # the smallest scale that the published checkpoints were trained at
EDGE_STEP_PX = 32  # sizes are multiples of the stride of most backbones
# A small box should cover a cell of the feature map: platelets of 12 px on a map of 16 px have AP 0.02 where larger
# objects of the same images have 0.26 and more (docs/results.md, BCCD).
CELLS_OF_SMALL_BOX = 1.0
# The same few images are learnt by heart otherwise; but harder images take longer: on 205 photographs of BCCD "strong"
# has the AP of flips alone after some 35 passes and less before, "paper" less in all 43 (docs/results.md). In few
# passes over many images a small transformer learns nothing by heart either.
FEW_IMAGES, OFTEN_PASSES = 1_000, 40

# -- the model ---------------------------------------------------------------------------------------------------------
# Of a fresh small transformer: with the paper's 0.1 AP is far behind for as long as was measured (docs/results.md,
# "Rates, schedule, dropout and queries").
SMALL_DROPOUT, DROPOUT = 0.0, 0.1

# -- steps ------------------------------------------------------------------------------------------------------------
FEWEST_IMAGES_A_STEP, MOST_IMAGES_A_STEP = 4, 16  # measured with 4 to 32 (docs/results.md)
STEPS_AN_EPOCH = 32  # at least, before a step gets more images: few images are better spent on more steps
PAPER_IMAGE_PX = 800 * 1333
CPU_STEP_PX = 4 * PAPER_IMAGE_PX  # more images a step are not faster there, and need memory
PAPER_GIB, GIB_AN_IMAGE = 16, 4  # of a GPU: the paper trained 4 such images on 16 GiB


@dataclass(frozen=True)
class Length:
    """Passes over the training images; more where that is fewer than `least_steps`, fewer above `most_steps`."""

    passes: int
    least_steps: int
    most_steps: int


LENGTHS = {
    "fresh": Length(300, 10_000, 300_000),  # the paper's passes; below some thousand steps AP is near 0
    # docs/results.md: after 5,200 steps on 205 photographs AP was still rising
    "small": Length(100, 2_000, 50_000),
    "whole": Length(50, 1_500, 50_000),
}
MOST_PASSES = 1_000  # over very few images, which are learnt by heart by then
EVALUATIONS = 50  # at most, each of which costs a pass over the images held out
LR_DROP_AT = 2 / 3  # the paper's 200 of 300 epochs

# -- rates ------------------------------------------------------------------------------------------------------------
PAPER_WIDTH = 256  # of the transformer; narrower ones are small
RATE, BACKBONE_SHARE, CLIP = 1e-4, 0.1, 0.1  # the paper's
# Measured with a clip at 1 on shapes (16 images a step, 1e-3) and BCCD (4 images, 5e-4 and backbone 1e-4), see
# docs/results.md, "Time to AP": a rate that grows with the root of the images. From random weights "paper" learns
# nothing at 1e-3, and "fast" most at twice these rates, which are too high for BCCD from trained weights.
SMALL_RATE, SMALL_RATE_IMAGES, MOST_SMALL_RATE, SMALL_BACKBONE_SHARE, SMALL_CLIP = 5e-4, 4, 1e-3, 0.2, 1.0
FRESH_FACTOR = 2


@dataclass(frozen=True)
class DataFacts:
    """What is measured of a data set.

    Attributes:
        images: to train on.
        evaluated_images: of one evaluation.
        classes: how many.
        rarest: objects of the class with the fewest among the images to train on.
        objects_median, objects_99, objects_most: objects of an image, crowds left out, over all splits: the median, the
            99th percentile and the greatest number.
        edge_px: shortest edge of the median image to train on; 0 where sizes are not known.
        small_box: the size (root of the area) that nine of ten boxes to train on exceed, each class counting alike, as
            in AP; in shares of the shortest edge of their image; 0 where there are none.
    """

    images: int
    evaluated_images: int
    classes: int
    rarest: int
    objects_median: float
    objects_99: int
    objects_most: int
    edge_px: int
    small_box: float


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        is_fresh: the transformer has random weights.
        num_queries, edge_px: its own, in pixels of the shortest edge; None for a fresh model.
        stride: of the feature map, in pixels.
        width: of the transformer.
        backbone_is_live: its norms learn, as in a network from random weights.
        is_frozen: it is a detector that stays as it is, under a mask head that learns.
    """

    is_fresh: bool = False
    num_queries: int | None = PUBLISHED_QUERIES
    edge_px: int | None = LARGEST_EDGE_PX
    stride: int = 32
    width: int = PAPER_WIDTH
    backbone_is_live: bool = False
    is_frozen: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the transformer is narrower than the paper's."""
        return self.width < PAPER_WIDTH


@dataclass(frozen=True)
class Machine:
    """What trains: memory of the GPU of a process (0 without one), and the number of processes."""

    gpu_gib: float = 0.0
    processes: int = 1


@dataclass(frozen=True)
class Pick:
    """A value for an option, the value in words, and the reason."""

    value: Any
    words: str
    because: str


def objects_an_image(splits: Iterable[Any]) -> list[int]:
    """The number of objects of each image of some data sets in the schema, crowds left out."""
    counts: list[int] = []
    for split in splits:
        for [objects] in _tables(split, "objects"):
            crowds = objects.field("iscrowd").flatten().to_numpy(False) != 0
            wanted_before = np.concatenate([[0], np.cumsum(~crowds)])
            counts += np.diff(wanted_before[_ends(objects)]).tolist()
    return counts


def measure(train: Any, objects_an_image: Sequence[int], evaluated_images: int) -> DataFacts:
    """The facts of the rows to train on, in the schema, and of the objects in all images. No image is opened."""
    num_classes = len(class_names(train))
    edges_px, shares, categories = [np.zeros(0)], [np.zeros(0)], [np.zeros(0, np.int64)]
    for widths, heights, objects in _tables(train, "width", "height", "objects"):
        edges = np.minimum(widths.to_numpy(False), heights.to_numpy(False)).astype(np.float64)
        edges_px.append(edges)
        boxes_xywh_px = objects.field("bbox").flatten().flatten().to_numpy(False).reshape(-1, 4).astype(np.float64)
        areas_px = boxes_xywh_px[:, 2:].clip(0).prod(axis=1)
        shares.append(np.sqrt(areas_px) / np.repeat(edges, np.diff(_ends(objects))).clip(1))
        categories.append(objects.field("category").flatten().to_numpy(False))
    edges, sizes, classes = map(np.concatenate, (edges_px, shares, categories))
    by_class = np.bincount(classes, minlength=num_classes)
    edges, valid = edges[edges > 0], (sizes > 0) & (sizes <= 1)
    counts = np.asarray(objects_an_image or [0])
    return DataFacts(
        images=len(train),
        evaluated_images=evaluated_images,
        classes=num_classes,
        rarest=int(by_class.min(initial=by_class.sum())),
        objects_median=float(np.median(counts)),
        objects_99=_percentile_99(counts),
        objects_most=int(counts.max()),
        edge_px=int(np.median(edges)) if len(edges) else 0,
        small_box=_small(sizes[valid], classes[valid]),
    )


def _small(sizes: np.ndarray, classes: np.ndarray) -> float:
    """The tenth percentile, each class counting alike; 0 of none."""
    if not len(sizes):
        return 0.0
    order = np.argsort(sizes)
    weights = np.cumsum(1 / np.bincount(classes)[classes[order]])
    return float(sizes[order][np.searchsorted(weights, 0.1 * weights[-1])])


def _tables(rows: Any, *columns: str) -> Iterator[list[Any]]:
    """Columns as Arrow arrays, a thousand rows at a time: masks, which may be large, stay as they are."""
    for table in rows.select_columns(list(columns)).with_format("arrow").iter(1000):
        yield [table[name].combine_chunks() for name in columns]


def _ends(objects: Any) -> np.ndarray:
    """Where the objects of each image end in the flat list of all, after a 0."""
    offsets = objects.field("category").offsets.to_numpy(False)
    return offsets - offsets[0]


def _percentile_99(counts: Sequence[int]) -> int:
    return int(np.percentile(counts, 99, method="higher"))


def queries_for(start: Start, objects_an_image: Sequence[int]) -> int:
    """The number of queries for images of so many objects: the start's, unless they are too few and can be changed."""
    counts = objects_an_image or [0]
    return _queries(start, _percentile_99(counts), max(counts))


def _queries(start: Start, at_99: int, most: int) -> int:
    own = start.num_queries
    enough = min(max(most, math.ceil(KEPT_MARGIN * at_99)), MOST_QUERIES)
    if own is not None and (start.is_frozen or own >= enough):
        return own
    wanted = max(most, math.ceil(NEW_MARGIN * at_99), FEWEST_QUERIES)
    return max(own or 0, min(10 * math.ceil(wanted / 10), MOST_QUERIES))


@dataclass(frozen=True)
class _Case:
    """The facts a rule looks at, and what is settled: by the user or by the rules before."""

    data: DataFacts
    start: Start
    machine: Machine
    settled: Mapping[str, Any]

    @property
    def edge_px(self) -> int:
        """Shortest edge of the images that the model sees."""
        return self.settled["image_size"] or self.start.edge_px or LARGEST_EDGE_PX

    @property
    def images_a_step(self) -> int:
        """Over all processes and accumulated batches."""
        batch = self.settled["batch_size"]
        batch = _batch_size(self).value if batch == "auto" else batch
        return batch * self.settled.get("gradient_accumulation", 1) * self.machine.processes

    @property
    def steps_an_epoch(self) -> int:
        images = self.data.images * self.settled.get("repeated_augmentation", 1)
        return max(1, math.ceil(images / self.images_a_step))

    @property
    def kind(self) -> str:
        return "fresh" if self.start.is_fresh else "small" if self.start.is_small else "whole"


def _num_queries(case: _Case) -> Pick:
    data, own = case.data, case.start.num_queries
    found, because = _queries(case.start, data.objects_99, data.objects_most), f"at most {data.objects_most} objects"
    if own is not None:
        because = f"the start's, for {because}" if found == own else f"the start's {own} are too few for {because}"
    return Pick(found, f"{found} queries", because)


def _image_size(case: _Case) -> Pick:
    """None keeps the start's own size, of whatever form."""
    data, own, because = case.data, case.start.edge_px, "no box of known size"
    size = own or LARGEST_EDGE_PX
    if data.small_box and data.edge_px:
        of_data = max(EDGE_STEP_PX, min(data.edge_px, LARGEST_EDGE_PX) // EDGE_STEP_PX * EDGE_STEP_PX)
        lowest = min(LEAST_EDGE_PX, of_data) if own is None else own
        if own is not None and not case.machine.gpu_gib:
            lowest = min(own, LEAST_EDGE_PX)
        wanted = CELLS_OF_SMALL_BOX * case.start.stride / data.small_box
        size = min(max(EDGE_STEP_PX * math.ceil(wanted / EDGE_STEP_PX), lowest), max(lowest, of_data))
        because = f"9 of 10 boxes have {data.small_box * size:.0f} px or more"
    if size == own:
        return Pick(None, f"images of {size} px", f"the start's; {because}")
    return Pick(size, f"images of {size} px", because)


def _dropout(case: _Case) -> Pick:
    """None keeps the start's own."""
    if not case.start.is_fresh:
        return Pick(None, "dropout as in the start", "it was trained so")
    found = SMALL_DROPOUT if case.start.is_small else DROPOUT
    return Pick(found, f"dropout {found:g}", "a small transformer" if case.start.is_small else "the paper's")


def _augment(case: _Case) -> Pick:
    """After the epochs, on whose number it depends."""
    few, passes = case.data.images < FEW_IMAGES, case.settled["epochs"]
    if passes is None and case.settled.get("max_steps"):
        passes = case.settled["max_steps"] / case.steps_an_epoch
    often = (passes or 0) >= OFTEN_PASSES
    found = "strong" if few and often else "flip" if case.start.is_small and not often else "paper"
    because = f"{'fewer' if few else 'not fewer'} than {FEW_IMAGES:,} images"
    if not often:
        because += ", on a clock" if passes is None else f", fewer than {OFTEN_PASSES} passes"
    return Pick(found, f"augmentation {found}", because)


def _recipe(case: _Case) -> Pick:
    return Pick("fast", "recipe fast", "ahead of paper on all sets measured")


def _batch_size(case: _Case) -> Pick:
    """Of a process; a power of two."""
    image_px = case.edge_px**2 * PAPER_IMAGE_PX / LARGEST_EDGE_PX**2
    step_px = CPU_STEP_PX
    if case.machine.gpu_gib:  # several processes must pick alike, and their memories may differ
        step_px = (case.machine.gpu_gib if case.machine.processes == 1 else PAPER_GIB) / GIB_AN_IMAGE * PAPER_IMAGE_PX
    of_data = case.data.images / STEPS_AN_EPOCH / case.machine.processes
    wanted = min(max(of_data, FEWEST_IMAGES_A_STEP / case.machine.processes), MOST_IMAGES_A_STEP)
    found = _power_of_two(min(wanted, step_px / image_px))
    because = f"{counted(case.data.images, 'image')} to train on" if wanted <= step_px / image_px else "memory"
    return Pick(found, counted(found, "image") + " a step", because)


def _power_of_two(number: float) -> int:
    """The greatest that is no greater; 1 at least."""
    return 2 ** max(0, math.floor(math.log2(number)))


def _epochs(case: _Case) -> Pick:
    length, each = LENGTHS[case.kind], case.steps_an_epoch
    steps = min(max(length.passes * each, length.least_steps), length.most_steps)
    epochs = min(max(1, math.ceil(steps / each)), MOST_PASSES)
    start = {"fresh": "a fresh transformer", "small": "a small start", "whole": "a whole detector to start from"}
    words = f"{counted(epochs, 'epoch')} of {counted(each, 'step')}"
    return Pick(epochs, words, start[case.kind])


def _eval_every(case: _Case) -> Pick:
    epochs, evaluated = case.settled["epochs"], case.data.evaluated_images
    if epochs is None:
        epochs = (case.settled.get("max_steps") or 0) / case.steps_an_epoch
    every = max(1, math.ceil(epochs / EVALUATIONS), math.ceil(evaluated / case.data.images))
    words = f"evaluated every {every} epochs" if every > 1 else "evaluated every epoch"
    return Pick(every, words, f"at most {EVALUATIONS} times, {counted(evaluated, 'image')} each")


def _learning_rate(case: _Case) -> Pick:
    if not case.start.is_small:
        return Pick(RATE, f"rate {RATE:g}", "the paper's")
    images, is_fast = case.images_a_step, case.settled["recipe"] == "fast"
    rate = min(MOST_SMALL_RATE if is_fast else SMALL_RATE, SMALL_RATE * math.sqrt(images / SMALL_RATE_IMAGES))
    is_fresh = is_fast and case.start.is_fresh
    found = float(f"{rate * (FRESH_FACTOR if is_fresh else 1):.2g}")
    kind = "a fresh small transformer" if is_fresh else "a small transformer"
    return Pick(found, f"rate {found:g}", f"{kind}, {counted(images, 'image')} a step")


def _backbone_learning_rate(case: _Case) -> Pick:
    share, because = BACKBONE_SHARE, "trained weights"
    if case.start.backbone_is_live:
        share, because = 1.0, "all of it learns"
    elif case.start.is_small and not case.start.is_fresh:
        share = SMALL_BACKBONE_SHARE
    found = float(f"{share * case.settled['learning_rate']:.6g}")
    return Pick(found, f"backbone {found:g}", because)


def _lr_drop_at(case: _Case) -> Pick:
    return Pick(LR_DROP_AT, f"rates / 10 after {100 * LR_DROP_AT:.0f}%", "the paper's")


def _clip(case: _Case) -> Pick:
    found = SMALL_CLIP if case.start.is_small else CLIP
    return Pick(
        found, f"gradients clipped at {found:g}", "a small transformer" if case.start.is_small else "the paper's"
    )


RULES: dict[str, Callable[[_Case], Pick]] = {
    "num_queries": _num_queries,
    "image_size": _image_size,
    "dropout": _dropout,
    "recipe": _recipe,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "augment": _augment,
    "eval_every": _eval_every,
    "learning_rate": _learning_rate,
    "backbone_learning_rate": _backbone_learning_rate,
    "lr_drop_at": _lr_drop_at,
    "clip": _clip,
}


def pick(data: DataFacts, start: Start, machine: Machine, given: Mapping[str, Any]) -> dict[str, Pick]:
    """A pick for each name of `RULES` that is not `given`, in their order.

    `given` may also have `max_steps`, `gradient_accumulation` and `repeated_augmentation`; `epochs` None where
    something else ends the training; and `batch_size` "auto", where the rules after it take what would be picked.
    """
    settled, picks = dict(given), {}
    for name, rule in RULES.items():
        if name not in settled:
            picks[name] = rule(_Case(data, start, machine, settled))
            settled[name] = picks[name].value
    return picks
