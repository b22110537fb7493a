"""Images and annotations in, tensors out; the model's outputs in, boxes out.

Two things differ from stock transformers, on purpose. Boxes are fractions of the visible image, never of the padded
canvas, so that padding never moves a label; and `labels[i]["size"]` is the visible image's size for the same reason.
Pixel values are stock's.
"""

import copy
import inspect
import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .image_processing.annotations import prepare_labels
from .image_processing.canvas_buffer import CanvasBuffer
from .image_processing.loading import as_image_list, check_float_range, load_image
from .image_processing.mask_methods import MaskPostProcessing
from .image_processing.padding import canvas_size, draw_canvas, draw_pixel_mask
from .image_processing.post_processing import detections_from_outputs
from .image_processing.saved_thresholds import SAVED, Threshold
from .image_processing.settings import (
    Size,
    as_size_dict,
    check_settings,
    resized_hw,
    translate_file,
    unknown_argument_error,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ImageLike = Image.Image | np.ndarray | Tensor | str | Path
Annotation = Mapping[str, Any]


class DetrImageProcessor(MaskPostProcessing, BaseImageProcessor):
    """Resizes, normalises and pads images for DETR, converts annotations to its labels and its outputs to boxes.

    ```python
    processor = DetrImageProcessor.from_pretrained("facebook/detr-resnet-50")
    inputs = processor(images=image, annotations={"image_id": 1, "annotations": [...]}, return_tensors="pt")
    detections = processor.post_process_object_detection(outputs, threshold=0.7, target_sizes=[(height, width)])
    ```

    Every argument is an attribute of the same name, and can be given to a call to override it there.

    A processor keeps the memory of its last batch once nothing else does, for its next batch (`CanvasBuffer`: at most
    256 MiB for pixel values and as much for the mask, freed with the processor; copies and pickles have none of it).
    Threads may share a processor.

    Args:
        format: "coco_detection" or "coco_panoptic". Kept for stock, which must be told; here an annotation shows by
            its keys which it is.
        size: {"shortest_edge", "longest_edge"} or {"max_height", "max_width"}, which keep the aspect ratio,
            {"height", "width"} or a pair, which do not; an integer is the shortest edge, the longest at most
            `max_size` (1333). Pixels. Default: 800 and 1333, the paper's.
        resample: 0 nearest, 2 bilinear (antialiased), 3 bicubic, as PIL numbers them.
        rescale_factor: what pixels are multiplied with when `do_rescale`, before normalising. It applies to float
            images too, as in stock transformers (with a warning where they seem to be in [0, 1] already).
        image_mean, image_std: one value a channel, or one for all. Default: ImageNet's.
        do_pad: pad to the largest height and width of the batch, or to `pad_size`, at the bottom and right, with
            zeros *after* normalising, and return `pixel_mask`.
        pad_size: {"height", "width"}, a pair, or an integer for a square, in pixels.
        do_convert_rgb: three channels whatever the image's mode; transparency is dropped as PIL's `convert("RGB")`
            does. Turn it off for models of 1 or N channels: then channels are left as they are.
        do_convert_annotations: boxes as (centre x, centre y, width, height) in [0, 1] of the visible image; else
            xyxy in pixels of the resized image. Default: as `do_normalize`.
        do_exif_transpose: turn PIL images and files upright as their EXIF orientation says. Annotations are in the
            coordinates of the upright image, as viewers and annotation tools show it; so are sizes in labels, and
            `target_sizes` must be (`ImageOps.exif_transpose(image).size[::-1]`, or the label's `orig_size`).
        on_bad_box: "error", "drop" or "clip", for boxes that are not finite, have no width or height, lie outside
            their image, or reach beyond it by more than a pixel, as in `load_detection_dataset` and the trainer. The
            last two warn with a count. A smaller overhang is always clipped.
        label_ids_to_fuse: the classes of stuff, of which panoptic post-processing makes one segment an image each
            unless it is told otherwise. None: no class.
        class_thresholds: {label: score} that post-processing keeps a detection above where a call names no threshold;
            `hf-detr evaluate --save-thresholds` writes them. Classes without one have 0.5, stock's. Stock passes the
            field over.

    Raises:
        TypeError: an unknown argument; the message names the nearest valid ones.
        ValueError: an impossible value.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012, a list as in every processor of transformers

    def __init__(
        self,
        *,
        format: str = "coco_detection",
        do_resize: bool = True,
        size: Size | None = None,
        resample: int | InterpolationMode = 2,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] = IMAGENET_MEAN,
        image_std: float | Sequence[float] = IMAGENET_STD,
        do_pad: bool = True,
        pad_size: Size | None = None,
        do_convert_rgb: bool = True,
        do_convert_annotations: bool | None = None,
        do_exif_transpose: bool = True,
        on_bad_box: str = "error",
        label_ids_to_fuse: Collection[int] | None = None,
        class_thresholds: Mapping[int, float] | None = None,
        max_size: int | None = None,
        **unknown: Any,
    ):
        if unknown:
            raise unknown_argument_error(type(self).__name__, unknown, _SETTINGS)
        super().__init__()
        settings = {
            "format": format,
            "do_resize": do_resize,
            "size": as_size_dict(800 if size is None else size, max_size),
            "resample": resample,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
            "do_pad": do_pad,
            "pad_size": pad_size,
            "do_convert_rgb": do_convert_rgb,
            "do_convert_annotations": do_normalize if do_convert_annotations is None else do_convert_annotations,
            "do_exif_transpose": do_exif_transpose,
            "on_bad_box": on_bad_box,
            "label_ids_to_fuse": label_ids_to_fuse,
            "class_thresholds": class_thresholds,
        }
        vars(self).update(check_settings(settings))
        self._buffer = CanvasBuffer()

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any):
        """A processor from the content of a preprocessor_config.json of any generation, `kwargs` overriding it.

        Old names are understood in both (`max_size`, `pad_and_return_pixel_mask`). A key of the file that no version
        knows is kept as an attribute, with a warning; one in `kwargs` raises TypeError, or is handed back with
        `return_unused_kwargs=True`.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        settings = translate_file(image_processor_dict, kwargs)
        unused = {name: settings.pop(name) for name in kwargs if name in settings and name not in _SETTINGS}
        if unused and not return_unused_kwargs:
            raise unknown_argument_error(cls.__name__, unused, _SETTINGS)
        strange = {name: settings.pop(name) for name in list(settings) if name not in _SETTINGS}
        processor = cls(**settings)
        if strange:
            warnings.warn(f"{cls.__name__}: settings without a meaning here, kept as attributes: {strange}.")
            vars(processor).update(strange)
        return (processor, unused) if return_unused_kwargs else processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike):
        """A processor from the path of a preprocessor_config.json."""
        return cls.from_dict(json.loads(Path(json_file).read_text(encoding="utf-8")))

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds; stock transformers' DetrImageProcessor reads it."""
        settings = {name: copy.deepcopy(value) for name, value in vars(self).items() if not name.startswith("_")}
        settings = {name: value for name, value in settings.items() if value is not None}
        return {**settings, "image_processor_type": "DetrImageProcessor"}

    def preprocess(
        self,
        images: ImageLike | Sequence[ImageLike],
        annotations: Annotation | Sequence[Annotation] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | Path | None = None,
        *,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        data_format: str = "channels_first",
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Images (and their annotations) -> the model's inputs.

        Args:
            images: one or several, of any kinds and sizes: PIL (any mode), numpy (H, W), (H, W, C) or (C, H, W),
                torch (C, H, W), a path of a file; or a 4-D batch. Integers in [0, 255], or floats.
            annotations: one dict an image: {"image_id": int, "annotations": [{"bbox": [x, y, width, height] in
                pixels, "category_id", ...}]} as COCO writes them, or a row of a data set, {"image_id", "objects":
                {"bbox", "category", ...}}. Crowds are left out.
            return_segmentation_masks: labels get `masks`, from polygons or run-length encodings in `segmentation`.
            return_tensors: "pt", "np", or None, which is "pt" but for images that cannot be stacked: a list of them.
            input_data_format: "channels_first" or "channels_last", where a shape leaves it open.
            device: where to work; default: where the images are.
            overrides: any argument of the constructor, for this call.

        Returns:
            pixel_values (B, C, H, W) float32, padding exactly 0; pixel_mask (B, H, W) int64, 1 on image and 0 on
            padding, with `do_pad`; labels with `annotations`: a list of dicts, see `image_processing.annotations`.

        Raises:
            TypeError: an unknown argument, or what is neither image nor annotation.
            ValueError: a damaged image or bad annotation; the message names the image, the value and the remedy.
            FileNotFoundError: a path without a file.
        """
        return_tensors = getattr(return_tensors, "value", return_tensors)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt', 'np' or None.")
        if getattr(data_format, "value", data_format) not in (None, "channels_first"):
            raise ValueError(
                f"data_format={data_format!r}: DETR takes channels_first; permute pixel_values afterwards."
            )
        settings = self._settings_of_call(overrides)

        images = as_image_list(images)
        annotations = self._annotation_list(annotations, len(images))
        images = self._load_images(images, settings, input_data_format, device)
        images_hw = [(image.shape[1], image.shape[2]) for image in images]
        visible_hw = [resized_hw(hw, settings["size"]) if settings["do_resize"] else hw for hw in images_hw]
        canvas_hw = canvas_size(visible_hw, settings, must_stack=return_tensors is not None)

        labels = None
        if annotations is not None:
            labels = [
                prepare_labels(
                    annotation,
                    f"annotations[{i}]",
                    images_hw[i],
                    visible_hw[i],
                    boxes_as_fractions=settings["do_convert_annotations"],
                    on_bad_box=settings["on_bad_box"],
                    with_masks=return_segmentation_masks,
                    masks_path=masks_path,
                )
                for i, annotation in enumerate(annotations)
            ]

        if canvas_hw is None:
            pairs = zip(images, visible_hw, strict=True)
            data = {"pixel_values": [draw_canvas([one], [hw], hw, settings, self._buffer)[0] for one, hw in pairs]}
        else:
            data = {"pixel_values": draw_canvas(images, visible_hw, canvas_hw, settings, self._buffer)}
            if settings["do_pad"]:
                data["pixel_mask"] = draw_pixel_mask(visible_hw, canvas_hw, images[0].device, self._buffer)
        encoded = BatchFeature(data, tensor_type=return_tensors if return_tensors == "np" else None)
        if labels is not None:
            moved = [{name: value.to(images[0].device) for name, value in label.items()} for label in labels]
            encoded["labels"] = [BatchFeature(label, tensor_type=return_tensors) for label in moved]
        return encoded

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: Threshold = SAVED,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        top_k: int | None = None,
        class_thresholds: Mapping[int, float] | Sequence[float] | None = None,
        nms_iou_threshold: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """The model's outputs -> one dict an image: scores (N,) float32, labels (N,) int64, boxes (N, 4) float32.

        Everything is computed for the whole batch where the outputs are, and copied to the host once, whatever the
        number of images; the results are CPU tensors (stock leaves them on the device, and waits for it three times
        an image).

        Args:
            outputs: with `logits` (B, Q, C + 1), the last class being "no object", and `pred_boxes` (B, Q, 4), cxcywh
                in [0, 1].
            threshold: keeps what scores above it; the score is the best class's probability, "no object" aside.
                "saved", the default: the processor's `class_thresholds`, and 0.5 for classes without one. None keeps
                every query. One with NaN or infinite logits or box is never kept, and warned of.
            target_sizes: (height, width) of each image, a list or a (B, 2) tensor: boxes are then xyxy in its pixels,
                not clipped to it; without, xyxy in [0, 1].
            top_k: at most so many an image, the best first; without, all in the order of the queries, as stock.
            class_thresholds: {label: threshold} for classes that differ from `threshold`, or one for every class;
                None as there.
            nms_iou_threshold: drops a box that overlaps a better one of its class by more than this IoU. DETR needs
                none; off by default.

        Raises:
            ValueError: sizes that do not match the batch, classes that the model has not, or impossible limits.
        """
        num_classes = outputs.logits.shape[-1] - 1
        threshold, class_thresholds = self._thresholds_of_call(threshold, class_thresholds, num_classes)
        return detections_from_outputs(outputs, threshold, target_sizes, top_k, class_thresholds, nms_iou_threshold)

    def _settings_of_call(self, overrides: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name in overrides if name not in _SETTINGS or name in _NOT_OF_A_CALL]
        if unknown:
            call = [n for n in inspect.signature(type(self).preprocess).parameters if n not in ("self", "overrides")]
            raise unknown_argument_error(
                f"{type(self).__name__}.preprocess", unknown, {*_SETTINGS, *call} - _NOT_OF_A_CALL
            )
        own = {name: getattr(self, name) for name in _SETTINGS if name != "max_size"}
        given = {name: value for name, value in overrides.items() if value is not None}
        return check_settings({**own, **given})

    @staticmethod
    def _annotation_list(annotations: Any, num_images: int) -> Sequence[Annotation] | None:
        if annotations is None:
            return None
        annotations = [annotations] if isinstance(annotations, Mapping) else list(annotations)
        if len(annotations) != num_images:
            raise ValueError(f"{num_images} images but {len(annotations)} annotations; give one dict for each image.")
        return annotations

    @staticmethod
    def _load_images(
        images: list[Any], settings: dict[str, Any], input_data_format: str | None, device: Any
    ) -> list[Tensor]:
        tensors = []
        for i, image in enumerate(images):
            tensor = load_image(
                image,
                f"images[{i}]",
                do_convert_rgb=settings["do_convert_rgb"],
                do_exif_transpose=settings["do_exif_transpose"],
                input_data_format=input_data_format,
                num_channels=len(settings["image_mean"]),
            )
            tensor = tensor if device is None else tensor.to(device)
            if tensor.is_floating_point():
                check_float_range(tensor, f"images[{i}]", settings["do_rescale"])
            tensors.append(tensor)
        devices = sorted({str(tensor.device) for tensor in tensors})
        if len(devices) > 1:
            raise ValueError(f"images are on several devices, {', '.join(devices)}; pass device= to gather them.")
        channels = sorted({tensor.shape[0] for tensor in tensors})
        if len(channels) > 1:
            raise ValueError(f"images have {' and '.join(map(str, channels))} channels; set do_convert_rgb=True.")
        return tensors


_NOT_OF_A_CALL = {"max_size", "label_ids_to_fuse", "class_thresholds"}
_SETTINGS = tuple(
    name for name in inspect.signature(DetrImageProcessor.__init__).parameters if name not in ("self", "unknown")
)
