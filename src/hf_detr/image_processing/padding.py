"""Images of several sizes -> one padded canvas, written once, and the mask that says where it is image."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from .canvas_buffer import CanvasBuffer
from .settings import RESAMPLE_MODES

# B images, C channels, H and W of the canvas; "visible" is an image after resizing, before padding


def canvas_size(
    visible_hw: list[tuple[int, int]], settings: dict[str, Any], must_stack: bool
) -> tuple[int, int] | None:
    """(height, width) of the canvas that all images are drawn on; None where each has its own."""
    largest_hw = max(h for h, _ in visible_hw), max(w for _, w in visible_hw)
    if not settings["do_pad"]:
        if len(set(visible_hw)) == 1:
            return largest_hw
        if must_stack:
            raise ValueError(
                f"images of different sizes, {sorted(set(visible_hw))[:5]} (height, width), cannot be stacked; set "
                f"do_pad=True, give size a height and a width, or leave return_tensors out for a list."
            )
        return None
    if settings["pad_size"] is None:
        return largest_hw
    pad_hw = settings["pad_size"]["height"], settings["pad_size"]["width"]
    for i, hw in enumerate(visible_hw):
        if hw[0] > pad_hw[0] or hw[1] > pad_hw[1]:
            raise ValueError(
                f"images[{i}] is {hw} (height, width) after resizing and does not fit pad_size {pad_hw}; resize to "
                f"size={{'max_height': {pad_hw[0]}, 'max_width': {pad_hw[1]}}}."
            )
    return pad_hw


def draw_canvas(
    images: list[Tensor],
    visible_hw: list[tuple[int, int]],
    canvas_hw: tuple[int, int],
    settings: dict[str, Any],
    buffer: CanvasBuffer,
) -> Tensor:
    """Resizes, rescales, normalises and pads: (C, H, W) images -> one (B, C, H, W) float32 canvas, written once.

    The arithmetic is stock transformers', to the bit; the padding is 0 after it, as in the original.

    Raises:
        ValueError: where the statistics have neither one value nor one for each channel.
    """
    channels, device = images[0].shape[0], images[0].device
    # rescaling and normalising in one: (x * factor - mean) / std = (x - mean / factor) / (std / factor)
    unit = 1 / settings["rescale_factor"] if settings["do_rescale"] else 1.0
    mean, std = (_per_channel(name, settings[name], channels, device) * unit for name in ("image_mean", "image_std"))

    canvas = buffer.empty((len(images), channels, *canvas_hw), torch.float32, device)
    for image, (height, width), own in zip(images, visible_hw, canvas, strict=True):
        if settings["do_resize"]:
            # as uint8: the quick kernel; quicker still in the channels-last memory of a decoded image
            image = tvF.resize(
                image, [height, width], interpolation=RESAMPLE_MODES[settings["resample"]], antialias=True
            )
        visible = own[:, :height, :width]
        visible.copy_(image.contiguous())  # transposing bytes and widening afterwards halves the time of doing both
        if settings["do_normalize"]:
            visible.sub_(mean).div_(std)
        elif settings["do_rescale"]:
            visible.mul_(settings["rescale_factor"])
        own[:, height:] = 0
        own[:, :height, width:] = 0
    return canvas


def _per_channel(name: str, values: list[float], channels: int, device: torch.device) -> Tensor:
    """(C, 1, 1) or (1, 1, 1) float32."""
    if len(values) not in (1, channels):
        raise ValueError(
            f"{name} has {len(values)} values, the images have {channels} channels; give {name} {channels} or 1, "
            f"or set do_convert_rgb=True."
        )
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def draw_pixel_mask(
    visible_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], device: torch.device, buffer: CanvasBuffer
) -> Tensor:
    """(B, H, W) int64, 1 on image and 0 on padding."""
    mask = buffer.empty((len(visible_hw), *canvas_hw), torch.int64, device).fill_(1)  # at once: by all threads
    for own, (height, width) in zip(mask, visible_hw, strict=True):
        own[height:] = 0
        own[:height, width:] = 0
    return mask
