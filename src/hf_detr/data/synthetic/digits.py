"""Scenes of handwritten digits: scans that scikit-learn ships, so that nothing is fetched."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from datasets import Dataset
from numpy.random import Generator
from PIL import Image

from .scenes import crop_to_ink, paint_scenes

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ENLARGED = 8  # each of the 8 x 8 scans is enlarged once to 64 x 64, smoothly, and its margin cut off


def digit_scenes(
    num_images: int,
    image_size: int = 96,
    max_objects: int = 5,
    seed: int = 0,
    digits: Iterable[int] = range(10),
    split: str = "train",
    object_size: tuple[int, int] | None = None,
    task: str = "detection",
) -> Dataset:
    """Images of scattered handwritten digits with tight boxes, in the schema of `schema.py`.

    `num_images` images, `image_size` pixels squared, each with 1 to `max_objects` of the `digits` (classes in
    ascending order, named "zero" to "nine"), `object_size` = (smallest, largest) height in pixels, by default a
    sixth to five twelfths of the image. Colours, contrast, texture, size and place are random but follow from
    `seed` alone; boxes overlap by at most a tenth of the smaller one. `split="test"` draws on other scans (300 of the
    1,797) than `split="train"`. `task` "instance" adds the digits' masks, "panoptic" also textures of the background,
    classes "plain", "striped", "checked" and "dotted", as stuff; boxes stay the same. Raises ValueError for impossible
    sizes, unknown splits and tasks, and no or unknown digits, ImportError without scikit-learn. Scans: Alpaydin and
    Kaynak, Optical Recognition of Handwritten Digits, 1998.
    """
    wanted = sorted(set(digits))
    if not wanted or not set(wanted) <= set(range(10)):
        raise ValueError(f"digits must be one or more of 0 to 9, got {wanted}.")
    scans = _scans()

    def draw(rng: Generator, height: int) -> tuple[int, np.ndarray]:
        category = int(rng.integers(len(wanted)))
        of_split = scans[wanted[category]][split]
        scan = of_split[rng.integers(len(of_split))]
        width = max(1, round(scan.width * height / scan.height))
        return category, np.asarray(scan.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255

    return paint_scenes(
        draw, [DIGIT_NAMES[digit] for digit in wanted], num_images, image_size, max_objects, object_size, seed, split,
        task, f"Generated scenes of handwritten digits, {split} scans, seed {seed}.",
    )  # fmt: skip


@cache
def _scans() -> dict[int, dict[str, list[Image.Image]]]:
    """Digit -> split -> its scans, enlarged and cut to the ink."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digit_scenes needs scikit-learn's scans; pip install 'hf-detr[train]'.") from error
    images, targets = load_digits(return_X_y=True)
    scans: dict[int, dict[str, list]] = {digit: {"train": [], "test": []} for digit in range(10)}
    for index, (flat, digit) in enumerate(zip(images.reshape(-1, 8, 8), targets, strict=True)):
        grey = Image.fromarray((flat * (255 / 16)).astype(np.uint8))
        large = np.asarray(grey.resize((8 * _ENLARGED, 8 * _ENLARGED), Image.Resampling.BICUBIC), dtype=np.float32)
        ink = crop_to_ink(large / large.max())
        # the scans come roughly in order of their writers: whole runs of 100 go to a split, so few writers are in both
        split = "test" if index // 100 % 5 == 4 else "train"
        scans[int(digit)][split].append(Image.fromarray((ink * 255).astype(np.uint8)))
    return scans
