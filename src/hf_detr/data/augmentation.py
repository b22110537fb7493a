"""The paper's augmentation, on picture, boxes and masks together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

# Carion et al. 2020, 4 and appendix A.4: pixels of the shortest edge, at a base of 800
_SCALES = tuple(range(480, 801, 32))
_SCALES_BEFORE_CROP = (400, 500, 600)
_CROP = (384, 600)
_BASE = 800


class PaperAugmentation:
    """Flip, multi-scale resize, random crop; a callable on a row of the schema, returning a new row.

    Half of the pictures are mirrored. Then half are resized so that the shortest edge is one of 480, 512 ... 800 (the
    longest at most 1333); the other half are resized to 400, 500 or 600, a rectangle with sides of 384 to 600 is cut
    out, and that is resized as the first half. `shortest_edge` and `longest_edge` scale all these numbers from 800
    and 1333.

    Boxes are cut to what remains in view, objects out of view leave (they are not in the picture), areas shrink with
    the visible part of their box. A row may have `masks`, (N, height, width). Random numbers are torch's: seeded by
    `torch.manual_seed`, different in every data loader worker. The picture comes out at its final size: the image
    processor must not resize it again, which `DetectionTransform` sees from `resizes`.
    """

    resizes = True

    def __init__(self, shortest_edge: int = 800, longest_edge: int = 1333, flip_probability: float = 0.5):
        if not 0 < shortest_edge <= longest_edge:
            raise ValueError(
                f"expected 0 < shortest_edge <= longest_edge in pixels, got {shortest_edge} and {longest_edge}."
            )

        def scaled(sizes: Sequence[int]) -> list[int]:
            return [max(1, round(size * shortest_edge / _BASE)) for size in sizes]

        resize = v2.RandomShortestSize(scaled(_SCALES), max_size=longest_edge)
        self.shortest_edge, self.longest_edge, self.flip_probability = shortest_edge, longest_edge, flip_probability
        self._transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(flip_probability),
                v2.RandomChoice(
                    [
                        resize,
                        v2.Compose(
                            [v2.RandomShortestSize(scaled(_SCALES_BEFORE_CROP)), _SizeCrop(*scaled(_CROP)), resize]
                        ),
                    ],
                    p=[0.5, 0.5],
                ),
            ]
        )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Row of the schema (`image` PIL, `objects` a dict of lists) -> row; ValueError for an image without PIL."""
        image = row["image"]
        if not isinstance(image, Image.Image):
            raise TypeError(f"image_id {row.get('image_id')}: expected a PIL image, got {type(image).__name__}.")
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # palettes and bilevel pictures cannot be interpolated
        size_hw = image.height, image.width
        boxes_xyxy_px = torch.tensor(row["objects"]["bbox"], dtype=torch.float32).reshape(-1, 4).clone()
        boxes_xyxy_px[:, 2:] += boxes_xyxy_px[:, :2]
        sample = {"image": image, "boxes": tv_tensors.BoundingBoxes(boxes_xyxy_px, format="XYXY", canvas_size=size_hw)}
        if row.get("masks") is not None:
            sample["masks"] = tv_tensors.Mask(torch.as_tensor(row["masks"]).reshape(-1, *size_hw))
        sample = self._transform(sample)

        image, boxes_xyxy_px = sample["image"], sample["boxes"].as_subclass(Tensor)
        sides = boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2]
        in_view = torch.nonzero((sides > 0).all(1)).flatten().tolist()
        objects = {name: [values[i] for i in in_view] for name, values in row["objects"].items()}
        boxes_xywh_px = torch.cat((boxes_xyxy_px[:, :2], sides), dim=1)
        objects["bbox"] = [boxes_xywh_px[i].tolist() for i in in_view]
        if "area" in objects:
            # a mask's share of its box is taken to stay what it was
            objects["area"] = [
                area * float(sides[i].prod()) / max(row["objects"]["bbox"][i][2] * row["objects"]["bbox"][i][3], 1e-12)
                for i, area in zip(in_view, objects["area"], strict=True)
            ]
        result = {**row, "image": image, "width": image.width, "height": image.height, "objects": objects}
        if "masks" in sample:
            result["masks"] = sample["masks"].as_subclass(Tensor)[in_view]
        return result

    def __repr__(self) -> str:
        return (
            f"PaperAugmentation(shortest_edge={self.shortest_edge}, longest_edge={self.longest_edge}, "
            f"flip_probability={self.flip_probability})"
        )


def paper_augmentation(
    shortest_edge: int = 800, longest_edge: int | None = None, flip_probability: float = 0.5
) -> PaperAugmentation:
    """`PaperAugmentation` for this base size in pixels; the longest edge keeps the paper's ratio, 1333 / 800."""
    return PaperAugmentation(shortest_edge, longest_edge or round(shortest_edge * 1333 / _BASE), flip_probability)


class _SizeCrop(v2.Transform):
    """Cuts out a rectangle whose sides are `low` to `high` pixels, or the picture's where that is smaller."""

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        image = flat_inputs[0]

        def side(length: int) -> int:
            high = min(length, self.high)
            low = min(self.low, high)
            return int(torch.randint(low, high + 1, ()))

        height, width = side(image.height), side(image.width)
        top = int(torch.randint(0, image.height - height + 1, ()))
        left = int(torch.randint(0, image.width - width + 1, ()))
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        return self._call_kernel(v2.functional.crop, inpt, **params)
