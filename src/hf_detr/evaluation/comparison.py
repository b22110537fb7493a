"""Whether one detector is better than another on the same images, or only luckier."""

from dataclasses import dataclass

import hotcoco

from .analysis import count
from .coco import CocoEvaluator


@dataclass(frozen=True)
class Difference:
    """Of an AP, the second detector's less the first's.

    Attributes:
        value: measured on all images.
        low, high: of 95 in 100 draws of as many images from these, with replacement (bootstrap).
    """

    value: float
    low: float
    high: float

    @property
    def is_more_than_chance(self) -> bool:
        """Whether nearly all draws agree on who is better."""
        return self.low > 0 or self.high < 0


def compare(first: CocoEvaluator, second: CocoEvaluator, draws: int = 500, seed: int = 0) -> dict[str, Difference]:
    """Differences {"map", "map_50", "map_75"} of two evaluators that saw the same images.

    Raises ValueError for other images, other objects, other classes, and without an image.
    """
    if first.image_ids() != second.image_ids() or first.names() != second.names():
        raise ValueError("The two evaluators saw other images or other classes; evaluate both on one data set.")
    for image_id, one, other in zip(first.image_ids(), first.images(), second.images(), strict=True):
        if len(one.targets.labels) != len(other.targets.labels):
            raise ValueError(
                f"image {image_id}: has other objects in the second evaluator; evaluate both on one split."
            )
    found = hotcoco.compare(count(first)[0], count(second)[0], n_bootstrap=draws, seed=seed, confidence=0.95)
    return {
        name: Difference(found["deltas"][theirs], found["ci"][theirs]["lower"], found["ci"][theirs]["upper"])
        for name, theirs in (("map", "AP"), ("map_50", "AP50"), ("map_75", "AP75"))
    }
