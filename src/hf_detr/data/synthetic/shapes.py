"""Scenes of drawn shapes: other classes than the digits', to show a fine-tuning on."""

from collections.abc import Callable, Iterable

import numpy as np
from datasets import Dataset
from numpy.random import Generator
from PIL import Image, ImageDraw

from .scenes import crop_to_ink, paint_scenes

_CANVAS = 96  # shapes are drawn this large, then reduced: smooth edges


def _ring(radii: Iterable[float], turn: float) -> list[tuple[float, float]]:
    """Corners at evenly spaced angles, at these distances (in half canvases) from the centre."""
    radii = list(radii)
    angles = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return [
        (_CANVAS / 2 * (1 + r * np.cos(a)), _CANVAS / 2 * (1 + r * np.sin(a)))
        for r, a in zip(radii, angles, strict=True)
    ]


def _cross(turn: float) -> list[tuple[float, float]]:
    arm, corners = 0.3, []
    for quarter in range(4):
        for x, y in ((0.95, -arm), (0.95, arm), (arm, arm)):
            angle = turn + quarter * np.pi / 2
            corners.append((x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)))
    return [(_CANVAS / 2 * (1 + x * 0.95), _CANVAS / 2 * (1 + y * 0.95)) for x, y in corners]


_CORNERS: dict[str, Callable[[float], list[tuple[float, float]]]] = {
    "circle": lambda turn: _ring([0.9] * 48, turn),
    "triangle": lambda turn: _ring([0.95] * 3, turn),
    "square": lambda turn: _ring([0.95] * 4, turn),
    "star": lambda turn: _ring([0.95, 0.4] * 5, turn),
    "cross": _cross,
}
SHAPE_NAMES = tuple(_CORNERS)


def shape_scenes(
    num_images: int,
    image_size: int = 96,
    max_objects: int = 5,
    seed: int = 0,
    shapes: Iterable[str] = SHAPE_NAMES,
    split: str = "train",
    object_size: tuple[int, int] | None = None,
    task: str = "detection",
) -> Dataset:
    """Images of scattered shapes, filled or in outline, turned at random, with tight boxes; else as `digit_scenes`.

    `shapes` names the classes, in order, out of "circle", "triangle", "square", "star", "cross". The splits differ in
    their random numbers. Raises ValueError for no, unknown or repeated shapes, impossible sizes and unknown splits.
    """
    wanted = list(shapes)
    if not wanted or not set(wanted) <= set(SHAPE_NAMES):
        raise ValueError(f"shapes must be one or more of {SHAPE_NAMES}, got {wanted}.")

    def draw(rng: Generator, height: int) -> tuple[int, np.ndarray]:
        category = int(rng.integers(len(wanted)))
        turn, outline = rng.uniform(0, 2 * np.pi), rng.random() < 0.4
        canvas = Image.new("L", (_CANVAS, _CANVAS))
        corners = _CORNERS[wanted[category]](turn)
        if outline:
            ImageDraw.Draw(canvas).line([*corners, *corners[:2]], fill=255, width=_CANVAS // 8, joint="curve")
        else:
            ImageDraw.Draw(canvas).polygon(corners, fill=255)
        small = canvas.resize((height, height), Image.Resampling.BOX)
        return category, crop_to_ink(np.asarray(small, dtype=np.float32) / 255)

    return paint_scenes(
        draw, wanted, num_images, image_size, max_objects, object_size, seed, split,
        task, f"Generated scenes of shapes, {split} split, seed {seed}.",
    )  # fmt: skip
