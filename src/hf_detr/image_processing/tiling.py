"""Large images in tiles: where the tiles lie, and the detections of all tiles as those of the whole image.

A model sees an image at a fixed size, so the small objects of a large image vanish; in tiles they keep their pixels.
The whole image is looked at too, for the objects that are larger than a tile.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as coco_mask
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..boxes import box_area

Corners = tuple[int, int, int, int]  # xyxy px

_SAME_IOU = 0.5  # boxes of two tiles that are one object
_INSIDE = 0.6  # share of a cut box that lies in a box of the object it is a part of
_CLEARLY_SMALLER = 0.7  # of a tile's side: larger objects have too little around them in a tile
_ALIKE = 0.5  # overlap along the edge of two parts of one object, as a share of the shorter


def tile_corners(size_hw: tuple[int, int], tile_px: int, overlap: float) -> list[Corners]:
    """The whole image, then tiles of `tile_px` squared in rows (narrower where the image is), evenly spread so that
    neighbours share `overlap` of their side or more; the whole image alone where it is no larger than a tile.

    Raises ValueError for an overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: expected a share of the tile's side, at least 0 and below 1.")
    height, width = size_hw
    whole = (0, 0, width, height)
    if max(size_hw) <= tile_px:
        return [whole]
    tops, lefts = _starts(height, tile_px, overlap), _starts(width, tile_px, overlap)
    return [whole] + [
        (left, top, min(left + tile_px, width), min(top + tile_px, height)) for top in tops for left in lefts
    ]


def merge_tiles(results: Sequence[Mapping[str, Any]], tiles: Sequence[Corners]) -> dict[str, Any]:
    """The result dicts of an image's tiles, in pixels of each, as one {scores, labels, boxes xyxy px of the image}.

    `tiles`: as `tile_corners` gives them, the whole image first. An object is judged by the view that shows most of it:
    a box at an edge of its tile is dropped where another tile shows it with room around, and so is a box of the whole
    image that is clearly smaller than a tile. Of two views' boxes of one class that are one object (IoU 0.5), the one
    not cut stays, else the more certain; parts that lie in an object seen whole, whatever they were taken for, go; the
    parts of an object that no view shows whole become one box with the highest score. Boxes of one view never remove
    each other. With `masks` (encodings, as `post_process_masks` gives them) each object has its own of the whole image;
    that of parts is what any of them covers.
    """
    if len(tiles) == 1:
        return dict(results[0])
    corners = torch.tensor(tiles, dtype=torch.float32)  # (P, 4)
    margin = max(2.0, 0.01 * (corners[1, 2:] - corners[1, :2]).max().item())  # what a box may miss an edge by
    tile = torch.repeat_interleave(torch.arange(len(tiles)), torch.tensor([len(one["scores"]) for one in results]))
    scores = torch.cat([one["scores"] for one in results])  # (N,)
    labels = torch.cat([one["labels"] for one in results])
    boxes = torch.cat([one["boxes"] for one in results]).float() + corners[tile][:, [0, 1, 0, 1]]

    inner = (corners != corners[0])[tile]  # (N, 4): edges that are not the image's border
    inner &= tile[:, None] > 0
    outside = (boxes - corners[tile]) * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    cut = inner & (outside > -margin)  # (N, 4): at the left, top, right, bottom
    boxes = boxes.where(~(inner & (outside > 0)), corners[tile])  # what a tile does not show is a guess

    tile_px = (corners[1, 2:] - corners[1, :2]).max()
    small = (tile == 0) & ((boxes[:, 2:] - boxes[:, :2]).amax(1) < _CLEARLY_SMALLER * tile_px)
    judged = (~((cut.any(1) | small) & _is_shown_whole(boxes, corners, margin))).nonzero()[:, 0]
    boxes, scores, labels, tile, cut = (values[judged] for values in (boxes, scores, labels, tile, cut))
    kept = _unique(boxes, scores, labels, tile, cut.any(1))
    boxes, scores, labels, tile, cut = (values[kept] for values in (boxes, scores, labels, tile, cut))
    found = judged[kept]  # of all that the tiles have
    boxes, scores, labels, tile, is_cut, members = _joined(boxes, scores, labels, tile, cut)
    kept = _unique(boxes, scores, labels, tile, is_cut)
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    merged = {"scores": scores[kept], "labels": labels[kept], "boxes": boxes[kept]}
    if "masks" in results[0]:
        parts = [(mask, corner) for one, corner in zip(results, tiles, strict=True) for mask in one["masks"]]
        merged["masks"] = [_pasted([parts[i] for i in found[members[k]].tolist()], tiles[0]) for k in kept.tolist()]
    return merged


def _pasted(parts: Sequence[tuple[dict[str, Any], Corners]], whole: Corners) -> dict[str, Any]:
    """The encoding, in the whole image, of what any of the masks of tiles covers."""
    covered = np.zeros((whole[3], whole[2]), np.uint8, order="F")
    for mask, (left, top, right, bottom) in parts:
        covered[top:bottom, left:right] |= coco_mask.decode(mask)
    rle = coco_mask.encode(covered)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _is_shown_whole(boxes: Tensor, corners: Tensor, margin: float) -> Tensor:
    """Whether some tile shows each box with `margin` px around it, or the image's border; (N,)."""
    shown = torch.ones(len(boxes), dtype=torch.bool)
    for low, high in ((0, 2), (1, 3)):  # tiles are a grid: some column, and some row
        spans = corners[1:, [low, high]].unique(dim=0)
        begins = (boxes[:, low, None] > spans[:, 0] + margin) | (spans[:, 0] == corners[0, low])
        ends = (boxes[:, high, None] < spans[:, 1] - margin) | (spans[:, 1] == corners[0, high])
        shown &= (begins & ends).any(1)
    return shown


def _starts(length: int, tile_px: int, overlap: float) -> list[int]:
    room = length - tile_px
    if room <= 0:
        return [0]
    steps = -(-room // max(1, int(tile_px * (1 - overlap))))
    return [round(step * room / steps) for step in range(steps + 1)]


def _unique(boxes: Tensor, scores: Tensor, labels: Tensor, tile: Tensor, is_cut: Tensor) -> Tensor:
    """The indices that non-maximum suppression keeps: between tiles, whole boxes before cut ones.

    Not torchvision's `batched_nms`, in which boxes of one tile would suppress each other: a DETR has no duplicates, so
    these are two objects.
    """
    areas = box_area(boxes)
    order = scores.argsort(descending=True, stable=True)
    order = order[is_cut[order].to(torch.uint8).argsort(stable=True)]
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for index in order.tolist():
        if not alive[index]:
            continue
        kept.append(index)
        low, high = torch.maximum(boxes[:, :2], boxes[index, :2]), torch.minimum(boxes[:, 2:], boxes[index, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        same = (labels == labels[index]) & (shared > _SAME_IOU * (areas + areas[index] - shared))
        if not is_cut[index]:
            same |= is_cut & (shared > _INSIDE * areas)
        alive &= ~(same & (tile != tile[index]))
    return torch.tensor(kept, dtype=torch.int64)


def _joined(
    boxes: Tensor, scores: Tensor, labels: Tensor, tile: Tensor, cut: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """The same with the parts of an object as one box; whether each is still cut, (N,), and of which boxes it is."""
    is_cut = cut.any(1)
    parts = is_cut.nonzero()[:, 0]
    left, top, right, bottom = boxes[parts].unbind(1)
    meets = torch.zeros(len(parts), len(parts), dtype=torch.bool)
    for low, high, low_cut, high_cut, side_low, side_high in (
        (left, right, cut[parts, 0], cut[parts, 2], top, bottom),
        (top, bottom, cut[parts, 1], cut[parts, 3], left, right),
    ):
        # the first is cut at its far edge, the second at its near one, and they overlap or touch
        meets_here = high_cut[:, None] & low_cut & (high[:, None] >= low) & (low[:, None] <= high)
        along = torch.minimum(side_high[:, None], side_high) - torch.maximum(side_low[:, None], side_low)
        sides = side_high - side_low
        meets |= meets_here & (along >= _ALIKE * torch.minimum(sides[:, None], sides))
    meets &= (labels[parts][:, None] == labels[parts]) & (tile[parts][:, None] != tile[parts])
    _, group = connected_components(meets.numpy(), directed=False)
    group = torch.from_numpy(group).long()

    single = torch.ones(len(boxes), dtype=torch.bool)
    hulls = []
    for members in (parts[group == one] for one in (group.bincount() > 1).nonzero()[:, 0]):
        single[members] = False
        best = members[scores[members].argmax()]
        hull = torch.cat((boxes[members, :2].amin(0), boxes[members, 2:].amax(0)))
        hulls.append((hull, scores[best], labels[best], members))
    of_boxes = [*single.nonzero(), *(members for *_, members in hulls)]
    boxes = torch.stack([*boxes[single], *(hull for hull, *_ in hulls)]) if len(boxes) else boxes
    scores = torch.cat((scores[single], torch.tensor([score for _, score, *_ in hulls])))
    labels = torch.cat((labels[single], torch.tensor([label for _, _, label, _ in hulls], dtype=torch.int64)))
    own = -1 - torch.arange(len(hulls))  # a joined box is of no tile
    is_cut = torch.cat((is_cut[single], torch.zeros(len(hulls), dtype=torch.bool)))
    return boxes, scores, labels, torch.cat((tile[single], own)), is_cut, of_boxes
