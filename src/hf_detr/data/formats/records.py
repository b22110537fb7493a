"""What a reader read of an image, as a row of the schema."""

from collections.abc import Sequence
from pathlib import Path

from ..box_policy import BoxPolicy, is_area_of, look_like_fractions
from .base import Findings, ImageRecord


def row_of(
    image: ImageRecord, policy: BoxPolicy, columns: Sequence[str], places: dict[tuple[str, int, int], str] | None = None
) -> dict:
    """The row of an image, with these `columns` of objects, its boxes as `policy` leaves them; `places` collects where
    each annotation stands, by split, image and annotation id."""
    objects: dict[str, list] = {name: [] for name in columns}
    for one in image.annotations:
        box = policy(one.bbox_xywh_px, image.width, image.height, one.where)
        if box is None:
            continue
        # the area of a mask is the source's; that of a box follows the box that was cut
        area = box[2] * box[3] if is_area_of(one.area, one.bbox_xywh_px) else one.area
        values = {**vars(one), "bbox": list(box), "area": area}
        for name in columns:
            objects[name].append(values[name])
        if places is not None:
            places[policy.split, image.image_id, one.id] = one.where
    return {
        "image": {"path": str(image.path), "bytes": None},
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "objects": objects,
    }


def refuse_fractions(images: list[ImageRecord], split: str, root: Path, findings: Findings) -> None:
    """Reports boxes that are all numbers up to 1, in images of more than a few pixels."""
    boxes = [one.bbox_xywh_px for image in images for one in image.annotations]
    side = max((max(image.width, image.height) for image in images), default=0)
    if look_like_fractions(boxes, side):
        findings.error(
            "fractions given as pixels", root,
            f"all {len(boxes)} boxes of split {split!r} are numbers up to 1, such as {boxes[0]}, in images of up to "
            f"{side} pixels; these are fractions: load with bbox_format='xywh_fraction' (or 'xyxy_fraction', "
            "'cxcywh_fraction'), or write pixels.", split,
        )  # fmt: skip
