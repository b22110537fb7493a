"""Any image (file, PIL, numpy, torch; any mode, layout and type) as one (C, H, W) tensor, uint8 or float32."""

import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

_EXIF_ORIENTATION = 0x0112
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # PIL converts colours multiplied by their alpha only to these
_UNREADABLE = (OSError, SyntaxError, EOFError, struct.error)  # what PIL raises for a damaged file, by format


def as_image_list(images: Any) -> list[Any]:
    """One image, a batch (B, C, H, W) or (B, H, W, C), or any iterable of images -> a list of images.

    Raises:
        ValueError: where there is no image.
        TypeError: for what is no image and no iterable.
    """
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        if images.ndim == 4:
            return list(images)
        return [images]
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise TypeError(
            f"images: expected a PIL image, numpy array, torch tensor, path of a file, or a list of them, got "
            f"{type(images).__name__}."
        )
    images = list(images)
    if not images:
        raise ValueError("images: expected at least one image, got an empty list.")
    return images


def load_image(
    image: Any,
    place: str,
    *,
    do_convert_rgb: bool,
    do_exif_transpose: bool,
    input_data_format: str | None = None,
    num_channels: int = 3,
) -> Tensor:
    """One image -> (C, H, W), uint8 in [0, 255], or float32 as given, on the device it was on.

    PIL images are turned upright as their EXIF orientation says (annotation tools and viewers show them so, and boxes
    are in those coordinates). With `do_convert_rgb` grey becomes three equal channels, transparency is dropped as by
    PIL's `convert("RGB")`, CMYK and palettes are converted; without, channels stay as they are. 16-bit integers are
    scaled to 8, booleans are 0 and 255. A 3-D array is (H, W, C) and a 3-D tensor (C, H, W) unless only the other
    layout has a plausible number of channels, or `input_data_format` ("channels_first", "channels_last") says.

    Args:
        place: names the image in errors, such as "images[3]".
        num_channels: how many the model takes, to tell the layouts apart.

    Raises:
        FileNotFoundError: a path without a file.
        ValueError: a damaged file, an impossible shape, NaN, or integers out of [0, 255].
        TypeError: what is no image.
    """
    if isinstance(image, (str, Path)):
        return _load_file(image, do_convert_rgb=do_convert_rgb, do_exif_transpose=do_exif_transpose)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or place
        return _pil_to_tensor(image, str(name), do_convert_rgb, do_exif_transpose)
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "uibf":
            raise TypeError(f"{place}: expected an array of integers or floats, got dtype {image.dtype}.")
        tensor, last_first = _array_to_tensor(image), True
    elif isinstance(image, Tensor):
        tensor, last_first = image.detach().as_subclass(Tensor), False
        if tensor.is_complex():
            raise TypeError(f"{place}: expected a tensor of integers or floats, got {tensor.dtype}.")
    else:
        raise TypeError(
            f"{place}: expected a PIL image, numpy array, torch tensor or path of a file, got {type(image).__name__}; "
            f"lists of lists are not taken, flatten them."
        )
    tensor = _channels_first(tensor, place, input_data_format, {1, 2, 3, 4, num_channels}, last_first)
    if do_convert_rgb:
        tensor = _to_three_channels(tensor, place)
    return _to_uint8_or_float32(tensor, place)


def check_float_range(image: Tensor, place: str, do_rescale: bool) -> None:
    """Float pixels must be finite; warns where they look rescaled already and would be rescaled again."""
    low, high = (bound.item() for bound in image.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{place}: pixels are NaN or infinite; repair the image or leave it out.")
    if do_rescale and low >= 0 and 0 < high <= 1:
        warnings.warn(
            "A float image with values in [0, 1] is about to be multiplied by rescale_factor once more, as stock "
            "transformers does; pass do_rescale=False, or the image as uint8."
        )


def _load_file(path: str | Path, *, do_convert_rgb: bool, do_exif_transpose: bool) -> Tensor:
    if str(path).startswith(("http://", "https://")):
        raise ValueError(
            f"{path}: expected a local file; fetch it first, e.g. transformers.image_utils.load_image(url)."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file; check the path, or the folder it is relative to.")
    try:
        with Image.open(path) as image:
            return _pil_to_tensor(image, str(path), do_convert_rgb, do_exif_transpose)
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{path}: not an image that PIL can read; convert it to JPEG or PNG, or leave it out."
        ) from error


def _pil_to_tensor(image: Image.Image, name: str, do_convert_rgb: bool, do_exif_transpose: bool) -> Tensor:
    try:
        image.load()
        if do_exif_transpose and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except _UNREADABLE as error:
        raise ValueError(f"{name}: the image is damaged ({error}); fetch the file again, or leave it out.") from error

    image = to_eight_bits(image, name)
    mode = image.mode
    try:
        image = image.convert(_STRAIGHT_ALPHA[mode]) if mode in _STRAIGHT_ALPHA else image
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB, PIL warns of what is meant here
        if do_convert_rgb:
            image = image if image.mode == "RGB" else image.convert("RGB")
        elif mode in ("P", "1"):
            image = image.convert("RGB" if mode == "P" else "L")  # numbers of colours and bits are no channels
    except ValueError as error:
        raise ValueError(f"{name}: PIL cannot make RGB of mode {mode!r} ({error}); convert the image first.") from error
    tensor = torch.from_numpy(np.array(image))
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def to_eight_bits(image: Image.Image, place: str) -> Image.Image:
    """A grey PIL image of 16 or 32 bits a pixel as one of 8 bits (mode "L"); other images as they are.

    16-bit integers (PIL would clip them, which turns most images white) are scaled from [0, 65535]. 32-bit integers
    hold 8 bits where none exceeds 255, else 16; floats also [0, 1], where none exceeds 1. Whatever reads an image
    (processor, augmentation, drawing, checks) scales by this function. Raises ValueError for other values.
    """
    if not (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        return image
    values = np.array(image).astype(np.float64)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{place}: pixels are NaN or infinite; repair the image or leave it out.")
    if low < 0 or high > 65535:
        raise ValueError(
            f"{place}: a grey image with values from {low:g} to {high:g}; scale them to [0, 255] or [0, 65535]."
        )
    top = 65535 if high > 255 or image.mode.startswith("I;16") else 1 if image.mode == "F" and high <= 1 else 255
    return Image.fromarray((values * 255 / top).round().astype(np.uint8))


def _array_to_tensor(array: np.ndarray) -> Tensor:
    # torch shares memory only with writable arrays of native byte order and forward strides
    if not (array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def _channels_first(
    image: Tensor, place: str, input_data_format: str | None, plausible: set[int], last_first: bool
) -> Tensor:
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3:
        raise ValueError(f"{place}: expected (H, W), (H, W, C) or (C, H, W), got shape {tuple(image.shape)}.")
    else:
        layout = getattr(input_data_format, "value", input_data_format)
        if layout is None:
            first, last = image.shape[0] in plausible, image.shape[-1] in plausible
            if not (first or last):
                raise ValueError(
                    f"{place}: neither end of the shape {tuple(image.shape)} is a number of channels "
                    f"({', '.join(map(str, sorted(plausible)))}); pass input_data_format."
                )
            layout = "channels_last" if last and (last_first or not first) else "channels_first"
        if layout not in ("channels_first", "channels_last"):
            raise ValueError(f"input_data_format={layout!r}: expected 'channels_first' or 'channels_last'.")
        if layout == "channels_last":
            image = image.permute(2, 0, 1)
    if 0 in image.shape:
        raise ValueError(f"{place}: the image is empty, shape {tuple(image.shape)}.")
    return image


def _to_three_channels(image: Tensor, place: str) -> Tensor:
    channels = image.shape[0]
    if channels in (1, 2):  # grey, or grey with alpha
        return image[:1].expand(3, -1, -1)
    if channels in (3, 4):
        return image[:3]
    raise ValueError(
        f"{place}: {channels} channels cannot be made RGB; set do_convert_rgb=False, and image_mean and image_std with "
        f"{channels} values, for a model that takes them."
    )


def _to_uint8_or_float32(image: Tensor, place: str) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if image.is_floating_point():
        return image.to(torch.float32)
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    wide = image.to(torch.int64)
    if image.dtype == torch.uint16:
        return ((wide * 255 + 32767) // 65535).to(torch.uint8)
    low, high = (bound.item() for bound in wide.aminmax())
    if low < 0 or high > 255:
        raise ValueError(f"{place}: {image.dtype} values from {low} to {high}; scale them to [0, 255] and pass uint8.")
    return wide.to(torch.uint8)
