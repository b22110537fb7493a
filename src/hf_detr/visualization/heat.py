"""Attention in colours: the brighter, the more."""

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from .attention import attention_on_image
from .canvas import ImageLike, as_rgb

_COLORS = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
# of each colour; dark where nothing was looked at
OPACITY = np.linspace(110, 200, 256).round().astype(np.uint8).tobytes()


def heat_image(attention: Tensor, size_wh: tuple[int, int]) -> Image.Image:
    """Attention over cells (H, W) as an image of 256 colours, whose opacities are `OPACITY`."""
    levels = (attention_on_image(attention, size_wh) * 255).round().to(torch.uint8).numpy()
    heat = Image.fromarray(levels)
    heat.putpalette(_COLORS.tobytes())
    return heat


def draw_attention(image: ImageLike, attention: Tensor) -> Image.Image:
    """A copy of the image, RGB, under its attention (H, W). `image`: as `draw_detections` takes it."""
    rgb = as_rgb(image)
    heat = heat_image(attention, rgb.size)
    opacity = heat.copy()
    opacity.putpalette(bytes(np.repeat(np.frombuffer(OPACITY, np.uint8), 3)))
    return Image.composite(heat.convert("RGB"), rgb, opacity.convert("L"))
