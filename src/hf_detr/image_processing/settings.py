"""The settings of an image processor (sizes, switches, statistics), checked and in one form, from files of any age."""

import difflib
import math
import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import SizeDict, get_image_size_for_max_height_width

from ..data.box_policy import ON_BAD_BOX
from .saved_thresholds import as_class_thresholds

Size = int | tuple[int, int] | list[int] | dict[str, int] | SizeDict

LONGEST_EDGE_PX = 1333  # of the published models, and what an integer `size` means in the files of 2021
_MOST_PX = 100_000  # of a side; a larger image does not fit into any memory
ANNOTATION_FORMATS = ("coco_detection", "coco_panoptic")
BAD_BOX_POLICIES = tuple(policy for policy in ON_BAD_BOX if policy != "keep")
# PIL's numbers, which the files carry; what PIL calls nearest is torchvision's nearest-exact
RESAMPLE_MODES = {0: InterpolationMode.NEAREST_EXACT, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}
_SIZE_KEYS = ({"shortest_edge", "longest_edge"}, {"height", "width"}, {"max_height", "max_width"})
_SWITCHES = (
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "do_convert_rgb",
    "do_convert_annotations",
    "do_exif_transpose",
)

# Written by stock transformers of some generation, and without a meaning here: what they say is always so, or is
# bookkeeping. `do_center_crop` and `crop_size` are not among them: they would change the image.
IGNORED_FILE_KEYS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "transformers_version",
    "use_fast",
    "backend",
    "_valid_processor_keys",
    "_valid_kwargs_names",
    "_max_size",
    "_processor_class",
    "_name_or_path",
    "model_input_names",
    "default_to_square",
    "data_format",
    "input_data_format",
    "device",
    "return_tensors",
    "disable_grouping",
    "image_seq_length",
    "masks_path",
    "return_segmentation_masks",
    "num_labels",
    "trust_remote_code",
    "code_revision",
}


def unknown_argument_error(where: str, unknown: Iterable[str], valid: Iterable[str]) -> TypeError:
    """The TypeError for arguments that `where` does not take: it names them, and the valid names nearest to each."""
    valid, hints = sorted(valid), []
    for name in unknown:
        near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
        hints.append(f"{name!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    return TypeError(f"{where}: unknown argument {', '.join(hints)}; it takes {', '.join(valid)}.")


def check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings in one form: sizes as dicts, statistics as lists of float, enumerations as their plain values.

    Raises:
        ValueError: naming the setting, its value, and what it may be.
    """
    checked = dict(settings)
    checked["format"] = _one_of("format", settings["format"], ANNOTATION_FORMATS)
    checked["on_bad_box"] = _one_of("on_bad_box", settings["on_bad_box"], BAD_BOX_POLICIES)
    checked["size"] = as_size_dict(settings["size"])
    checked["pad_size"] = None if settings["pad_size"] is None else as_pad_size_dict(settings["pad_size"])
    if settings["label_ids_to_fuse"] is not None:
        labels = [_whole(label) for label in settings["label_ids_to_fuse"]]
        if any(label is None or label < 0 for label in labels):
            raise ValueError(
                f"label_ids_to_fuse={settings['label_ids_to_fuse']!r}: expected class ids, integers from 0."
            )
        checked["label_ids_to_fuse"] = sorted(set(labels))
    checked["class_thresholds"] = as_class_thresholds(settings["class_thresholds"])
    for name in _SWITCHES:
        if settings[name] not in (True, False):
            raise ValueError(f"{name}={settings[name]!r}: expected True or False.")
        checked[name] = bool(settings[name])

    numbers = {**{number: number for number in RESAMPLE_MODES}, **{mode: n for n, mode in RESAMPLE_MODES.items()}}
    if settings["resample"] not in numbers:
        raise ValueError(
            f"resample={settings['resample']!r}: expected 0 (nearest), 2 (bilinear, the paper's) or 3 (bicubic)."
        )
    checked["resample"] = numbers[settings["resample"]]

    factor = _floats(settings["rescale_factor"])
    if len(factor) != 1 or not factor[0] > 0:
        raise ValueError(f"rescale_factor={settings['rescale_factor']!r}: expected a number above 0, such as 1/255.")
    checked["rescale_factor"] = factor[0]
    for name in ("image_mean", "image_std"):
        checked[name] = _floats(settings[name])
        if not checked[name] or (name == "image_std" and min(checked[name]) <= 0):
            raise ValueError(
                f"{name}={settings[name]!r}: expected one finite number a channel, and for image_std above 0."
            )
    return checked


def _floats(value: Any) -> list[float]:
    """One number or several, of any kind, as plain floats; empty where they are not all finite numbers."""
    try:
        values = [float(one) for one in value] if np.ndim(value) else [float(value)]
    except (TypeError, ValueError):
        return []
    return values if all(map(math.isfinite, values)) else []


def as_size_dict(size: Size, max_size: int | None = None) -> dict[str, int]:
    """`size` as one of {shortest_edge, longest_edge}, {height, width}, {max_height, max_width}, in pixels.

    An integer is the shortest edge, with the longest at most `max_size` (1333 where none is said); a pair is exactly
    (height, width). Raises ValueError for anything else, and for a longest edge below the shortest.
    """
    size = _size_dict(size, max_size)
    if _contradicts_itself(size):
        shortest, longest = size["shortest_edge"], size["longest_edge"]
        raise ValueError(
            f"size={size!r}: longest_edge {longest} is below shortest_edge {shortest}, so no image could have both; "
            f"give a longest_edge of {shortest} or more (the paper's ratio makes it {round(shortest * 1333 / 800)}), "
            "which beside an integer size is called max_size."
        )
    return size


def _size_dict(size: Size, max_size: int | None) -> dict[str, int]:
    if _whole(size) is not None:
        size = {"shortest_edge": size, "longest_edge": LONGEST_EDGE_PX if max_size is None else max_size}
    else:
        size = _dict_of("size", size)
        if set(size) == {"shortest_edge"} and max_size is not None:
            size["longest_edge"] = max_size
    if set(size) not in _SIZE_KEYS:
        raise ValueError(
            f"size={size!r}: expected the keys shortest_edge and longest_edge (keeps the aspect ratio), height and "
            f"width (exact), or max_height and max_width (keeps the aspect ratio)."
        )
    return _positive_pixels("size", size)


def _contradicts_itself(size: Mapping[str, int]) -> bool:
    return "shortest_edge" in size and size["longest_edge"] < size["shortest_edge"]


def _size_in_file(size: Size, max_size: int | None) -> dict[str, int]:
    """As `as_size_dict`, but a longest edge below the shortest is a warning: stock takes such files, and what it makes
    of them is the longest edge alone, as if both were that."""
    size = _size_dict(size, max_size)
    if _contradicts_itself(size):
        read = {**size, "shortest_edge": size["longest_edge"]}
        warnings.warn(f"preprocessor_config.json: size={size!r}: longest_edge is below shortest_edge; read as {read}.")
        return read
    return size


def as_pad_size_dict(pad_size: Size) -> dict[str, int]:
    """`pad_size` as {height, width} in pixels; an integer is a square."""
    if _whole(pad_size) is not None:
        pad_size = {"height": pad_size, "width": pad_size}
    pad_size = _dict_of("pad_size", pad_size)
    if set(pad_size) != {"height", "width"}:
        raise ValueError(f"pad_size={pad_size!r}: expected the keys height and width, an integer, or (height, width).")
    return _positive_pixels("pad_size", pad_size)


def resized_hw(image_hw: tuple[int, int], size: dict[str, int]) -> tuple[int, int]:
    """(height, width) in pixels after resizing an image of `image_hw` as `size` says; never below 1.

    The rounding is stock transformers', to the pixel: an image must have the shape its checkpoint was trained with.
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        height, width = get_image_size_for_max_height_width(image_hw, size["max_height"], size["max_width"])
    else:
        height, width = get_size_with_aspect_ratio(image_hw, size["shortest_edge"], size["longest_edge"])
    return max(height, 1), max(width, 1)  # a very long and thin image would round to nothing


def translate_file(file_settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preprocessor_config.json, old names made new, then `overrides` (old names too) on top.

    2021: `size` and `max_size` are integers, `pad_and_return_pixel_mask` is today's `do_pad`. None means the default.
    What stands for nothing here is left out; keys that nobody knows stay, for the caller to judge. A size whose longest
    edge is below the shortest is an error in `overrides`, a warning in files.
    """
    settings: dict[str, Any] = {}
    file = ("preprocessor_config.json: ", file_settings, _size_in_file)
    for place, source, read_size in (file, ("", overrides, as_size_dict)):
        source = {name: value for name, value in source.items() if name not in IGNORED_FILE_KEYS and value is not None}
        if "pad_and_return_pixel_mask" in source:
            source.setdefault("do_pad", source.pop("pad_and_return_pixel_mask"))
        max_size = source.pop("max_size", None)
        if "size" in source:
            source["size"] = read_size(source["size"], max_size)
        elif max_size is not None:
            size = {**settings.get("size", {"shortest_edge": 800}), "longest_edge": max_size}
            source["size"] = read_size(size, None)
        if "class_thresholds" in source:
            source["class_thresholds"] = as_class_thresholds(source["class_thresholds"], place)
        if not source.get("do_center_crop", False):
            source.pop("do_center_crop", None)
            source.pop("crop_size", None)
        settings.update(source)
    return settings


def _dict_of(name: str, size: Any) -> dict[str, Any]:
    if isinstance(size, (Mapping, SizeDict)):
        return dict(size)
    if isinstance(size, (tuple, list, np.ndarray, Tensor)) and np.shape(size) == (2,):
        return {"height": size[0], "width": size[1]}
    raise ValueError(f"{name}={size!r}: expected an integer, (height, width) or a dict, in pixels.")


def _positive_pixels(name: str, size: dict[str, Any]) -> dict[str, int]:
    for key, value in size.items():
        most = _MOST_PX if key != "longest_edge" else math.inf  # that one is a limit itself
        if not 1 <= (_whole(value) or 0) <= most:
            raise ValueError(f"{name}[{key!r}]={value!r}: expected a whole number of pixels, from 1 to {_MOST_PX:,}.")
    return {key: _whole(value) for key, value in size.items()}


def _whole(value: Any) -> int | None:
    """An integer of any kind (Python's, NumPy's, a tensor of one) as int; None for anything else."""
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    value = getattr(value, "value", value)  # transformers' AnnotationFormat is an enumeration
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}.")
    return value
