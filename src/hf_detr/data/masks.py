"""Masks of objects: from polygons, run-length encodings and segments of PNG files, and back.

An *entry* is what the schema's `objects.segmentation` holds of one object: {"polygons", "size", "counts", "file",
"id"}, all None but one of

    polygons      lists of x, y, x, y ... in pixels of the image
    size, counts  (height, width) and COCO's compressed run-length encoding
    file, id      a PNG file and the value of the segment in it: the palette's index, or r + 256 g + 65536 b

and None for an object without a mask. Entries are references: nothing is decoded, or opened, before a mask is used.
"""

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ENTRY_FIELDS = ("polygons", "size", "counts", "file", "id")
_FAR_PX = 2**20  # drawing a polygon takes memory by its length, NaN and infinity all of it
_COLOURED, _INDEXED = ("RGB", "RGBA"), ("P", "L", "1", "I", "I;16", "I;16B")
# what PIL raises for a damaged file
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class MaskError(ValueError):
    """A segmentation that gives no mask; `kind` is a short constant to count by."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def as_entry(segmentation: Any) -> dict[str, Any] | None:
    """The entry of a segmentation in any usual form; None where it says nothing (None, [], {}).

    Takes an entry, a list of polygons, a dict of a run-length encoding (compressed, as text or bytes, or a list of
    counts), or a mask (h, w) as an array or tensor. Raises MaskError for anything else.
    """
    if isinstance(segmentation, (np.ndarray, Tensor)) and segmentation.ndim == 2:
        return encode_mask(segmentation)
    if not isinstance(segmentation, Mapping):
        polygons = _polygons(segmentation)
        return _entry(polygons=polygons) if polygons else None
    given = {name: value for name, value in segmentation.items() if value is not None}
    if "counts" in given or "size" in given:
        size, counts = _size_of(given), given.get("counts")
        if isinstance(counts, bytes):
            counts = counts.decode("latin-1")
        if not isinstance(counts, str):
            counts = _compressed(counts, size)
        # 6 bits a character, "0" to "o"; from "P" on another follows; "0" alone is no run at all
        elif not (counts.strip("0") and min(counts) >= "0" and max(counts) <= "o" and counts[-1] < "P"):
            raise _bad_encoding(counts, size)
        return _entry(size=size, counts=counts)
    if "file" in given:
        try:
            path = os.fspath(given["file"])
            path.encode()  # what is no UTF-8 cannot be held by a column
            return _entry(file=path, id=operator.index(given.get("id")))
        except (TypeError, ValueError, AttributeError):
            message = f"segmentation {_short(given)}; expected a file and the id of a segment in it."
            raise MaskError("unreadable", message) from None
    if given and "polygons" not in given:
        raise MaskError("unreadable", f"segmentation {_short(segmentation)}; {_FORMS}.")
    return as_entry(given.get("polygons"))


def decode_segmentation(
    segmentation: Any, size_hw: tuple[int, int], place: str = "segmentation", files: "SegmentFiles | None" = None
) -> NDArray:
    """(h, w) uint8, 0 or 1: the mask of an entry, of any form that `as_entry` takes, or of a mask itself.

    Polygons are drawn as COCO's own tools draw them. `files` keeps the PNG of one image open for its other segments.

    Raises:
        MaskError: where there is no mask, or not of `size_hw`; the message begins with `place`.
    """
    try:
        return _decoded(segmentation, tuple(size_hw), SegmentFiles() if files is None else files)
    except MaskError as error:
        raise MaskError(error.kind, f"{place}: {error}") from error


def encode_mask(mask: NDArray | Tensor) -> dict[str, Any]:
    """The entry, size and counts, of a mask (h, w): what is not 0 is the object."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    rle = coco_mask.encode(np.asfortranarray(array != 0, dtype=np.uint8))
    return _entry(size=list(array.shape), counts=rle["counts"].decode("ascii"))


def boxes_from_masks(masks: NDArray | Tensor) -> NDArray:
    """(T, 4) float64 xywh in pixels, tight around masks (T, h, w); zeros for an empty mask."""
    array = np.asarray(masks) != 0
    columns, rows = array.any(axis=1), array.any(axis=2)  # (T, w), (T, h)
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right, bottom = (side.shape[1] - side[:, ::-1].argmax(axis=1) for side in (columns, rows))
    boxes = np.stack((left, top, right - left, bottom - top), axis=1).astype(np.float64)
    return boxes * columns.any(axis=1)[:, None]


def box_of(segmentation: Any, size_hw: tuple[int, int]) -> tuple[float, ...] | None:
    """xywh in pixels around an entry: a polygon's to the point, a mask's to the pixel; None where there is no mask."""
    try:
        entry = as_entry(segmentation)
        if entry is not None and entry["polygons"] is not None:
            x, y = (np.concatenate([polygon[axis::2] for polygon in entry["polygons"]]) for axis in (0, 1))
            return float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))
        return tuple(boxes_from_masks(decode_segmentation(entry, size_hw)[None])[0].tolist())
    except MaskError:
        return None


class SegmentFiles:
    """The segment of each pixel of PNG files, each file read once; for one image, then to be let go."""

    def __init__(self):
        self._ids: dict[str, NDArray] = {}

    def __call__(self, path: str) -> NDArray:
        """(h, w) integers. Raises MaskError for a file that is missing, damaged or no PNG of segments."""
        if path not in self._ids:
            self._ids[path] = _segment_ids(path)
        return self._ids[path]


_FORMS = "expected polygons, a run-length encoding, or the file and id of a segment"


def _entry(**fields: Any) -> dict[str, Any]:
    return dict.fromkeys(ENTRY_FIELDS) | fields


def _decoded(segmentation: Any, size_hw: tuple[int, int], files: SegmentFiles) -> NDArray:
    if isinstance(segmentation, (np.ndarray, Tensor)) and segmentation.ndim == 2:
        mask = np.asarray(torch.as_tensor(segmentation, device="cpu"))
        _check_size(mask.shape, size_hw, "the mask")
        return (mask != 0).astype(np.uint8)
    entry = as_entry(segmentation)
    if entry is None:
        raise MaskError("none", f"segmentation {_short(segmentation)} says nothing; {_FORMS}.")
    if entry["file"] is not None:
        ids = files(entry["file"])
        _check_size(ids.shape, size_hw, entry["file"])
        mask = (ids == entry["id"]).astype(np.uint8)
        if not mask.any():
            raise MaskError("id not in the PNG", f"{entry['file']}: no pixel has the id {entry['id']}; {_CORRECT}.")
        return mask
    height, width = size_hw
    if entry["polygons"] is not None:
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(entry["polygons"], height, width)))
    _check_size(entry["size"], size_hw, "the encoded mask")
    return _decoded_runs(entry["counts"], entry["size"])


_CORRECT = "correct the annotation or remove the object"


def _check_size(size: Sequence[int], size_hw: tuple[int, int], what: str) -> None:
    if tuple(size) != tuple(size_hw):
        raise MaskError(
            "size differs",
            f"{what} has size {list(size)}, its image {list(size_hw)} (height, width); make the mask anew.",
        )


def _polygons(given: Any) -> list[list[float]]:
    """Lists of x, y, x, y ..., checked."""
    if given is None:
        return []
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, np.ndarray, Tensor)):
        raise MaskError("unreadable", f"segmentation {_short(given)}; masks need {_FORMS.removeprefix('expected ')}.")
    polygons = []
    for one in given:
        try:
            polygon = np.array(one, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            polygon = np.array([[np.nan]])
        if polygon.ndim == 1 and polygon.size < 6 and not polygon.size % 2:
            kind, hint = "polygon of fewer than 3 points", ""
        elif polygon.ndim != 1 or polygon.size % 2 or not (np.abs(polygon) < _FAR_PX).all():
            kind, hint = "unreadable", " (a polygon is a list in the list of polygons)" if polygon.ndim == 0 else ""
        else:
            polygons.append(polygon.tolist())
            continue
        raise MaskError(kind, f"polygon {_short(one)}; expected x, y pairs of at least three finite points{hint}.")
    return polygons


def _size_of(given: Mapping[str, Any]) -> list[int]:
    try:
        height, width = (operator.index(side) for side in given.get("size"))
    except (TypeError, ValueError):
        height = width = 0
    if not (0 < height < 2**31 and 0 < width < 2**31):
        raise MaskError(
            "unreadable", f"the encoded mask has size {_short(given.get('size'))}; expected [height, width]."
        )
    return [height, width]


def _compressed(counts: Any, size: list[int]) -> str:
    """COCO's compressed text of a list of counts, the lengths of runs of 0 and 1 in turn, column by column."""
    height, width = size
    try:
        counts = [operator.index(count) for count in counts]
        if min(counts) >= 0 and sum(counts) == height * width:
            return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)["counts"].decode("ascii")
    except (TypeError, ValueError, OverflowError):
        pass
    raise _bad_encoding(counts, size)


def _decoded_runs(counts: str, size: list[int]) -> NDArray:
    height, width = size
    try:
        rle = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
        mask = coco_mask.decode(rle)
        # runs that end early are decoded as if zeros followed; the union with itself adds none, and so tells
        if coco_mask.merge([rle, rle])["counts"] == coco_mask.encode(mask)["counts"]:
            return mask
    except (TypeError, ValueError, OverflowError):
        pass
    raise _bad_encoding(counts, size)


def _bad_encoding(counts: Any, size: list[int]) -> MaskError:
    return MaskError(
        "unreadable",
        f"the run-length encoding {_short(counts)} cannot be decoded; write the mask anew, with counts that add up to "
        f"{size[0]} x {size[1]}.",
    )


def _segment_ids(path: str) -> NDArray:
    try:
        with Image.open(path, formats=("PNG",)) as image:  # and no other file that a data set may name
            image.load()
            mode, pixels = image.mode, np.array(image)
    except FileNotFoundError as error:
        raise MaskError("file missing", f"{path}: no such PNG of masks; restore it, or {_CORRECT}.") from error
    except _UNREADABLE as error:
        raise MaskError("file corrupt", f"{path}: not a readable PNG ({error}); replace it.") from error
    if mode in _COLOURED:
        red, green, blue = np.moveaxis(pixels[..., :3].astype(np.int64), -1, 0)
        return red + 256 * green + 65536 * blue
    if mode in _INDEXED:
        return pixels.astype(np.int64)
    raise MaskError("file corrupt", f"{path}: a PNG of mode {mode}; masks are indices (P, L) or colours (RGB).")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "..."
