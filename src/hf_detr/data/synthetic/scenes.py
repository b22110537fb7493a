"""Painting of generated scenes: stamps (shapes of ink) of random colour and size on a textured background.

Scene number i of a seed is the same whatever the number of scenes asked for: each has its own random generator.
"""

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from datasets import Dataset, DatasetInfo
from numpy.random import Generator
from PIL import Image

from ..masks import boxes_from_masks, encode_mask
from ..schema import detection_features
from .textures import TEXTURE_NAMES, paint_textures

_SPLITS = ("train", "test")
_TASKS = ("detection", "instance", "panoptic")
_INK = 0.35  # coverage of a pixel from which it counts as ink: boxes are tight around what one sees

# draws one object: (generator, wanted height in pixels) -> class id and coverage (h, w) in [0, 1]
DrawStamp = Callable[[Generator, int], tuple[int, np.ndarray]]


def paint_scenes(
    draw: DrawStamp,
    class_names: Sequence[str],
    num_images: int,
    image_size: int,
    max_objects: int,
    object_size: tuple[int, int] | None,
    seed: int,
    split: str,
    task: str,
    description: str,
) -> Dataset:
    """`num_images` scenes of `image_size` pixels squared, each with 1 to `max_objects` stamps, in the one schema.

    With `task` "instance" objects have exact masks of what is seen of their ink, with "panoptic" the background has
    textures (`textures.TEXTURE_NAMES`, classes after the others), which are stuff. Boxes are the same in all three.
    """
    if task not in _TASKS:
        raise ValueError(f"task must be one of {_TASKS}, got {task!r}.")
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {_SPLITS}, got {split!r}.")
    if num_images < 0 or image_size < 16 or max_objects < 1:
        raise ValueError(
            f"expected num_images >= 0, image_size >= 16 and max_objects >= 1, got {num_images}, {image_size} and "
            f"{max_objects}."
        )
    low, high = object_size or (image_size // 6, image_size * 5 // 12)  # 16 to 40 of 96 pixels
    if not 4 <= low <= high <= image_size:
        raise ValueError(
            f"object_size must be (smallest, largest) height in pixels with 4 <= smallest <= largest <= image_size, "
            f"got {(low, high)} for image_size={image_size}."
        )

    columns: dict[str, list] = {name: [] for name in ("image", "image_id", "width", "height", "objects")}
    next_id = 1
    for index in range(num_images):
        rng = np.random.default_rng([seed, _SPLITS.index(split), index])
        canvas = _background(rng, image_size)
        # random numbers of its own: boxes do not depend on the task
        textures_rng = np.random.default_rng([seed, _SPLITS.index(split), index, 1])
        textures = paint_textures(textures_rng, canvas) if task == "panoptic" else {}
        owner = np.full((image_size, image_size), -1)  # the object seen in each pixel
        boxes: list[tuple[int, int, int, int]] = []
        categories = []
        for _ in range(rng.integers(1, max_objects + 1)):
            category, coverage = draw(rng, int(rng.integers(low, high + 1)))
            box = _place(rng, coverage.shape, image_size, boxes)
            if box is None:
                continue  # no free place left: the scene has an object less
            _stamp(rng, canvas, coverage, box)
            owner[box[1] : box[1] + box[3], box[0] : box[0] + box[2]][coverage > _INK] = len(boxes)
            boxes.append(box)
            categories.append(category)
        columns["image"].append({"path": None, "bytes": _png(canvas)})
        columns["image_id"].append(index)
        columns["width"].append(image_size)
        columns["height"].append(image_size)
        objects = {"bbox": boxes, "category": categories, "area": [w * h for _, _, w, h in boxes]}
        if task != "detection":
            stuff = {texture: seen for texture, mask in textures.items() if (seen := mask & (owner < 0)).any()}
            masks = [*(owner == number for number in range(len(boxes))), *stuff.values()]
            stacked = np.array(masks).reshape(-1, image_size, image_size)
            objects["bbox"] = [*boxes, *boxes_from_masks(stacked[len(boxes) :]).tolist()]
            objects["category"] = [*categories, *(len(class_names) + texture for texture in stuff)]
            objects["area"] = stacked.sum(axis=(1, 2)).tolist()
            objects["segmentation"] = [encode_mask(mask) for mask in masks]
        if task == "panoptic":
            objects["is_thing"] = [True] * len(boxes) + [False] * len(stuff)
        count = len(objects["bbox"])
        columns["objects"].append({"id": list(range(next_id, next_id + count)), "iscrowd": [0] * count, **objects})
        next_id += count
    names = [*class_names, *(TEXTURE_NAMES if task == "panoptic" else ())]
    features = detection_features(names, None, task != "detection", task == "panoptic")
    return Dataset.from_dict(columns, features=features, info=DatasetInfo(description=description, features=features))


def crop_to_ink(coverage: np.ndarray) -> np.ndarray:
    """The part of a coverage map (h, w) that its ink spans."""
    rows, columns = np.flatnonzero((coverage > _INK).any(1)), np.flatnonzero((coverage > _INK).any(0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _background(rng: Generator, size: int) -> np.ndarray:
    """(size, size, 3) float in [0, 255]: a few soft patches of colour, grain on top."""
    patches = rng.normal(rng.uniform(50, 205), 28, (4, 4, 3)).clip(0, 255).astype(np.uint8)
    soft = Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * rng.uniform(2, 12)
    return np.asarray(soft, dtype=np.float32) + grain


def _place(rng: Generator, size_hw: tuple[int, int], image_size: int, boxes: list) -> tuple[int, int, int, int] | None:
    """A random xywh box of this size that covers no more than a tenth of any other's, or None after 40 tries."""
    height, width = size_hw
    if height > image_size or width > image_size:
        return None
    for _ in range(40):
        x, y = int(rng.integers(0, image_size - width + 1)), int(rng.integers(0, image_size - height + 1))
        for left, top, w, h in boxes:
            overlap = max(0, min(x + width, left + w) - max(x, left)) * max(0, min(y + height, top + h) - max(y, top))
            if overlap > 0.1 * min(width * height, w * h):
                break
        else:
            return x, y, width, height
    return None


def _stamp(rng: Generator, canvas: np.ndarray, coverage: np.ndarray, box_xywh: tuple[int, int, int, int]) -> None:
    """Blends a colour that differs from what lies under it into `canvas`, in place."""
    x, y, width, height = box_xywh
    under = canvas[y : y + height, x : x + width]
    grey = under.mean()
    contrast = rng.uniform(60, 160)
    # lighter or darker, wherever there is room for the contrast
    level = (
        grey + contrast if (rng.random() < 0.5 or grey - contrast < 0) and grey + contrast <= 255 else grey - contrast
    )
    colour = (level + rng.normal(0, 18, 3)).clip(0, 255)
    under += coverage[..., None] * (colour - under)


def _png(canvas: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
