"""Textured regions of a background, the stuff of panoptic scenes."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

# (x, y, period) in pixels -> what is added to the background, in [-1, 1]
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda x, y, period: np.zeros_like(x),
    "striped": lambda x, y, period: np.sign(np.sin(2 * np.pi * x / period)),
    "checked": lambda x, y, period: np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period)),
    "dotted": lambda x, y, period: np.where(
        (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < 6, 1, -0.3
    ),
}
TEXTURE_NAMES = tuple(_PATTERNS)


def paint_textures(rng: Generator, image: np.ndarray) -> dict[int, np.ndarray]:
    """Divides a square `image`, (size, size, 3) float, by one or two lines and gives each region a texture of its
    own, in place. Returns the masks (size, size) bool of the textures that occur, by their place in TEXTURE_NAMES."""
    size = len(image)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    regions = np.zeros((size, size), dtype=np.int64)
    for _ in range(rng.integers(1, 3)):
        angle, through = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7, 2) * size
        regions = 2 * regions + ((x - through[0]) * np.cos(angle) + (y - through[1]) * np.sin(angle) > 0)
    masks = {}
    for region, texture in enumerate(rng.permutation(len(TEXTURE_NAMES)).tolist()):
        turn, period, strength = rng.uniform(-0.4, 0.4), rng.uniform(7, 10), rng.uniform(18, 30)
        turned = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        pattern = strength * _PATTERNS[TEXTURE_NAMES[texture]](*turned, period)
        mask = regions == region
        if mask.any():
            image[mask] += pattern[mask][:, None]
            masks[texture] = mask
    return dict(sorted(masks.items()))
