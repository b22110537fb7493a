"""The outputs of a model with masks -> maps of segments, maps of classes, and encoded masks.

The segments are stock transformers', to the pixel: sigmoid, bilinear resizing, weighting by the score, and each pixel
to its best query. What differs is the way there: queries that the threshold drops are never resized, maps of the full
size exist one chunk at a time, and everything of a batch comes to the host in two copies, the scores and then the maps.
"""

import math
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor
from torch.nn.functional import interpolate

from .post_processing import detections_from_outputs, thresholds_of_classes

# B images, Q queries, K decoded masks an image (all Q unless the model kept some), C classes and one for "no object",
# N kept queries of one image; (h, w) of the decoded masks, (H, W) of the result

MASK_STRIDE = 4  # pixels of the processed image to one of a decoded mask (paper, section 4.2)
_CHUNK_PX = 2**21  # of a device: 8 MiB of float32 at a time
_NEVER = -1.0  # below any probability: the map of a query whose mask is not finite

Sizes = Tensor | Sequence[Sequence[int]]
Size = tuple[int, int]


class _Kept(NamedTuple):
    """The queries of one image that are above the threshold, in their order."""

    positions: NDArray  # (N,) int64, along K
    scores: NDArray  # (N,) float32
    labels: list[int]


@torch.no_grad()
def segments_from_outputs(
    outputs: Any,
    threshold: float | None,
    class_thresholds: Mapping[int, float] | None,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int],
    target_sizes: Sizes | None,
    processed_sizes: Sizes | None,
    return_coco_annotation: bool = False,
) -> list[dict[str, Any]]:
    """See `DetrImageProcessor.post_process_panoptic_segmentation` and `post_process_instance_segmentation`."""
    logits, masks = _decoded(outputs)
    names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    for name, value in zip(names, (threshold, mask_threshold, overlap_mask_area_threshold), strict=True):
        _check_fraction(name, value)
    grids_hw = _grids_hw(processed_sizes, masks)
    sizes_hw = grids_hw if target_sizes is None else _sizes_hw("target_sizes", target_sizes, len(masks))
    fused = {operator.index(label) for label in label_ids_to_fuse}

    thresholds = thresholds_of_classes(threshold, class_thresholds, logits.shape[-1] - 1)
    kept, num_invalid = _above_threshold(logits, thresholds)
    parts: list[Tensor] = []
    for own, one, (height, width), size_hw in zip(masks, kept, grids_hw, sizes_hw, strict=True):
        if len(one.positions):
            kept_masks = _chosen(own, one.positions)
            probabilities = kept_masks[:, :height, :width].float().sigmoid()
            valid = _are_finite(kept_masks)
            probabilities = probabilities.where(valid[:, None, None], _NEVER)
            weights = torch.from_numpy(one.scores).to(own.device)
            parts += [*_best_of(probabilities, size_hw, weights, mask_threshold), valid]
    arrays = iter(_to_host(parts))

    results = []
    for one, size_hw in zip(kept, sizes_hw, strict=True):
        if not len(one.positions):  # as stock has it
            nothing = [] if return_coco_annotation else torch.from_numpy(np.full(size_hw, -1, np.float32))
            results.append({"segmentation": nothing, "segments_info": []})
            continue
        owner, areas, valid_host = next(arrays), next(arrays), next(arrays)
        num_invalid += int((~valid_host).sum())
        ids, segments = _number_segments(one, owner, areas, overlap_mask_area_threshold, fused)
        segmentation = ids[owner]
        found = _runs_of_values(segmentation) if return_coco_annotation else torch.from_numpy(segmentation)
        results.append({"segmentation": found, "segments_info": segments})
    _warn_of_invalid(num_invalid)
    return results


@torch.no_grad()
def classes_from_outputs(
    outputs: Any, target_sizes: Sizes | None, processed_sizes: Sizes | None, return_segmentation_scores: bool
) -> list[Any]:
    """See `DetrImageProcessor.post_process_semantic_segmentation`."""
    logits, masks = _decoded(outputs)
    grids_hw = _grids_hw(processed_sizes, masks)
    sizes_hw = grids_hw if target_sizes is None else _sizes_hw("target_sizes", target_sizes, len(masks))
    valid = _are_finite(masks) & logits.sum(-1).isfinite()  # (B, K)
    shares = logits.softmax(-1)[..., :-1].where(valid[..., None], 0)

    parts = [valid]
    for i, ((height, width), size_hw) in enumerate(zip(grids_hw, sizes_hw, strict=True)):
        probabilities = masks[i, :, :height, :width].float().sigmoid().where(valid[i, :, None, None], 0)
        votes = torch.einsum("qc,qhw->chw", shares[i], probabilities)
        if return_segmentation_scores:
            votes = _resized(votes, size_hw)
            parts += [votes.argmax(0), votes]
        elif votes.device.type == "cpu":
            classes = _possible_winners(votes.numpy())
            winners = _best_of(votes[classes], size_hw)[0].numpy()
            parts.append(torch.from_numpy(np.array(classes)[winners]))
        else:
            parts.append(_best_of(votes, size_hw)[0].long())
    valid_host, *arrays = _to_host(parts)
    _warn_of_invalid(int((~valid_host).sum()))
    maps = [torch.from_numpy(array) for array in arrays]
    if not return_segmentation_scores:
        return maps
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput as Output

    pairs = zip(maps[::2], maps[1::2], strict=True)
    return [Output(data={"segmentation": one, "segmentation_scores": scores}) for one, scores in pairs]


@torch.no_grad()
def masks_from_outputs(
    outputs: Any,
    threshold: float | None,
    class_thresholds: Mapping[int, float] | None,
    mask_threshold: float,
    target_sizes: Sizes | None,
    top_k: int | None,
    processed_sizes: Sizes | None,
) -> list[dict[str, Any]]:
    """See `DetrImageProcessor.post_process_masks`."""
    logits, masks = _decoded(outputs)
    _check_fraction("mask_threshold", mask_threshold)
    grids_hw = _grids_hw(processed_sizes, masks)
    images_hw = grids_hw if processed_sizes is None else _sizes_hw("processed_sizes", processed_sizes, len(masks))
    sizes_hw = images_hw if target_sizes is None else _sizes_hw("target_sizes", target_sizes, len(masks))

    logits = logits.where(_are_finite(masks)[..., None], math.nan)  # which gives no detection
    decoded = SimpleNamespace(logits=logits, pred_boxes=_of_decoded(outputs, outputs.pred_boxes))
    least = 0.0 if threshold is None else threshold  # the rows that fill up K have a score of exactly 0
    results = detections_from_outputs(decoded, least, sizes_hw, top_k, class_thresholds, None, with_queries=True)

    least_logit = float(logit(mask_threshold))  # sigmoid(x) > t as x > logit(t): one pass less over every map
    for own, result, grid_hw, image_hw, size_hw in zip(masks, results, grids_hw, images_hw, sizes_hw, strict=True):
        kept = _chosen(own, result.pop("queries").numpy())[:, : grid_hw[0], : grid_hw[1]].float()
        direct = processed_sizes is None or image_hw == size_hw
        result["masks"] = []
        for _, chunk in _chunks(kept, size_hw if direct else image_hw):
            inside = (chunk > least_logit).to(torch.uint8)
            if not direct:  # nearest, as the original
                inside = interpolate(inside[None], size=size_hw, mode="nearest")[0]
            result["masks"] += _encoded(inside.transpose(1, 2).contiguous().cpu().numpy())
    return results


def _decoded(outputs: Any) -> tuple[Tensor, Tensor]:
    """Class logits (B, K, C + 1) and mask logits (B, K, h, w) of the decoded queries."""
    logits, masks = _of_decoded(outputs, outputs.logits).float(), outputs.pred_masks
    queries = getattr(outputs, "mask_queries", None)
    if queries is not None:
        nothing = torch.full_like(logits[:1, :1], -1e4)  # its softmax is exactly 0, and finite all the same
        nothing[..., -1] = 0
        logits = logits.where((queries >= 0)[..., None], nothing)
    if masks.ndim != 4 or masks.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"pred_masks {tuple(masks.shape)} and logits {tuple(logits.shape)} do not match; expected one mask (h, w) "
            "for each query, or mask_queries (B, K) that names the query of each mask."
        )
    return logits, masks


def _of_decoded(outputs: Any, values: Tensor) -> Tensor:
    """Values (B, Q, D) of all queries -> (B, K, D) of those whose masks were decoded."""
    queries = getattr(outputs, "mask_queries", None)
    if queries is None:
        return values
    return values.gather(1, queries.clamp(min=0)[..., None].expand(-1, -1, values.shape[-1]))


def _are_finite(masks: Tensor) -> Tensor:
    """(..., h, w) -> (...): a sum is finite only of finite numbers, in float32, which float16's do not exceed."""
    return masks.sum((-2, -1), dtype=torch.float32).isfinite()


def _chosen(masks: Tensor, positions: NDArray) -> Tensor:
    """The masks (N, h, w) at these positions along K, without a visit to the host."""
    return masks.index_select(0, torch.from_numpy(positions).to(masks.device))


def _above_threshold(logits: Tensor, thresholds: NDArray) -> tuple[list[_Kept], int]:
    """The queries of each image whose best class is above its threshold (C,), and how many have logits that are not
    finite; one copy to the host."""
    scores, labels = logits.softmax(-1).max(-1)
    scores = scores.where(logits.sum(-1).isfinite(), math.nan)  # softmax makes finite probabilities of one of -inf
    scores, labels = torch.stack((scores, labels.float())).cpu().numpy()  # labels are exact below 2**24
    thresholds = np.append(thresholds, np.inf)  # "no object" is never kept
    above = scores > thresholds[labels.astype(np.int64)]  # NaN is above nothing
    positions = [np.flatnonzero(one) for one in above]
    kept = [_Kept(p, scores[i][p], labels[i][p].astype(int).tolist()) for i, p in enumerate(positions)]
    return kept, int(np.isnan(scores).sum())


def _best_of(
    maps: Tensor, size_hw: Size, weights: Tensor | None = None, mask_threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The number of the greatest of the maps (N, h, w) at each of H x W pixels (the first of equals), and their areas.

    The areas (N,) int64 count the pixels in which a map, resized and weighted, is at least `mask_threshold`; without
    weights there are none.
    """
    if maps.device.type == "cpu":
        return _best_on_host(maps, size_hw, weights, mask_threshold)
    numbers = torch.zeros(size_hw, dtype=_dtype_for(maps), device=maps.device)
    greatest = torch.full(size_hw, -math.inf, device=maps.device)
    areas = [numbers.new_zeros(0, dtype=torch.int64)]
    for start, chunk in _chunks(maps, size_hw):
        if weights is not None:
            chunk = chunk * weights[start : start + len(chunk), None, None]
            areas.append(torch.count_nonzero(chunk >= mask_threshold, dim=(1, 2)))
        values, number = chunk.max(0)
        numbers = (number + start).to(numbers.dtype).where(values > greatest, numbers)
        greatest = torch.maximum(greatest, values)
    return numbers, torch.cat(areas)


def _best_on_host(maps: Tensor, size_hw: Size, weights: Tensor | None, mask_threshold: float) -> tuple[Tensor, Tensor]:
    """`_best_of` map by map; NumPy compares several times as fast as PyTorch."""
    numbers = np.zeros(size_hw, torch.empty(0, dtype=_dtype_for(maps), device="cpu").numpy().dtype)
    greatest, areas = np.full(size_hw, -np.inf, np.float32), []
    for start, chunk in _chunks(maps, size_hw):
        one = chunk[0].numpy()
        if weights is not None:
            one = one * weights[start].numpy()
            areas.append(np.count_nonzero(one >= mask_threshold))
        # numbers ascend: the largest of those that were better than all before is the last
        np.maximum(numbers, (one > greatest) * numbers.dtype.type(start), out=numbers)
        np.maximum(greatest, one, out=greatest)
    return torch.from_numpy(numbers), torch.from_numpy(np.array(areas, dtype=np.int64))


def _dtype_for(maps: Tensor) -> torch.dtype:
    """Of the numbers of so many maps."""
    return torch.uint8 if len(maps) <= 256 else torch.int16


def _chunks(maps: Tensor, size_hw: Size) -> Iterator[tuple[int, Tensor]]:
    """The maps (N, h, w) at full size, some at a time, each time with the number of the first."""
    # the host takes one, which stays in its cache
    step = 1 if maps.device.type == "cpu" else max(1, _CHUNK_PX // (size_hw[0] * size_hw[1]))
    for start in range(0, len(maps), step):
        yield start, _resized(maps[start : start + step], size_hw)


def _resized(maps: Tensor, size_hw: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size_hw):
        return maps
    return interpolate(maps[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def _possible_winners(votes: NDArray) -> list[int]:
    """The classes whose votes (C, h, w) can be the greatest anywhere after resizing, in their order.

    A resized pixel lies between four neighbours, so a class that is everywhere below the smallest of some other class's
    four never wins. In most images most classes are.
    """
    if min(votes.shape[1:]) == 1:
        return list(range(len(votes)))
    greatest = votes.max(0)
    sure = np.full((votes.shape[1] - 1, votes.shape[2] - 1), -np.inf, np.float32)  # what the winner has at least
    for one in votes:
        if (one == greatest).any():
            np.maximum(sure, _least_of_four(one), out=sure)
    bar = _least_of_four(np.pad(sure, 1, constant_values=np.inf))  # (h, w): of the four fields around each neighbour
    bar -= 1e-5 * np.abs(bar)  # resizing rounds
    return [k for k, one in enumerate(votes) if (one >= bar).any()]


def _least_of_four(values: NDArray) -> NDArray:
    """(h, w) -> (h - 1, w - 1)."""
    rows = np.minimum(values[:-1], values[1:])
    return np.minimum(rows[:, :-1], rows[:, 1:])


def _number_segments(
    kept: _Kept, owner: NDArray, areas: NDArray, overlap_mask_area_threshold: float, fused: set[int]
) -> tuple[NDArray, list[dict[str, Any]]]:
    """The segment id of each kept query (N,) int32, 0 for none, and stock's dict of each query that is a segment.

    Every segment has an id of its own. (Stock goes on counting from the id of the last fused one, so that a later
    object can get the id, and with it the pixels, of an earlier one.)
    """
    won = np.bincount(owner.ravel(), minlength=len(areas))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = won.astype(np.float32) / areas.astype(np.float32)  # float32, as stock compares them
    ids, segments = np.zeros(len(areas), np.int32), []
    id_of_class: dict[int, int] = {}
    last = 0
    for k, (label, score) in enumerate(zip(kept.labels, kept.scores.tolist(), strict=True)):
        if won[k] == 0 or areas[k] == 0 or not float(shares[k]) > overlap_mask_area_threshold:
            continue
        if label not in id_of_class:
            last += 1
        ids[k] = id_of_class.get(label, last)
        if label in fused:
            id_of_class[label] = int(ids[k])
        info = {"id": int(ids[k]), "label_id": label, "was_fused": label in fused, "score": round(score, 6)}
        segments.append(info)
    return ids, segments


def _runs_of_values(segmentation: NDArray) -> list[list[int]]:
    """What stock calls the run-length encodings of a map (H, W): for each value in it, in ascending order, the runs.

    A run is its start, counted from 1 along the rows, and its length: [start, length, start, length, ...].
    """
    flat = segmentation.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    runs = np.stack((starts + 1, np.diff(starts, append=flat.size)), axis=1)
    values = flat[starts]
    return [runs[values == value].ravel().tolist() for value in np.unique(values)]


def _encoded(inside: NDArray) -> list[dict[str, Any]]:
    """Masks (N, W, H) uint8, transposed since COCO goes down the columns -> compressed encodings."""
    rles = coco_mask.encode(inside.transpose(2, 1, 0))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles]


def _to_host(tensors: Sequence[Tensor]) -> list[NDArray]:
    """The tensors as arrays, in one copy of all their bytes."""
    if all(one.device.type == "cpu" for one in tensors):
        return [one.numpy() for one in tensors]
    flat = torch.cat([one.contiguous().flatten().view(torch.uint8) for one in tensors]).cpu().numpy()
    ends = np.cumsum([one.nbytes for one in tensors])
    arrays = []
    for one, part in zip(tensors, np.split(flat, ends[:-1]), strict=True):
        empty = np.empty(tuple(one.shape), torch.empty(0, dtype=one.dtype, device="cpu").numpy().dtype)
        empty.view(np.uint8).reshape(-1)[:] = part
        arrays.append(empty)
    return arrays


def _grids_hw(processed_sizes: Sizes | None, masks: Tensor) -> list[Size]:
    """(height, width) of each image in its decoded masks (B, K, h, w), without the padding."""
    height, width = masks.shape[-2:]
    if processed_sizes is None:
        return [(height, width)] * len(masks)
    sizes_hw = _sizes_hw("processed_sizes", processed_sizes, len(masks))
    grids_hw = [(-(-h // MASK_STRIDE), -(-w // MASK_STRIDE)) for h, w in sizes_hw]
    if any(h > height or w > width for h, w in grids_hw):
        raise ValueError(
            f"processed_sizes {sizes_hw} do not fit masks of {height} x {width}, which are of images up to "
            f"{height * MASK_STRIDE} x {width * MASK_STRIDE}; give the labels' size, (height, width) after resizing."
        )
    return grids_hw


def _sizes_hw(name: str, sizes: Sizes, num_images: int) -> list[Size]:
    """Whole pixels, from a list or a (B, 2) tensor of any device."""
    if not isinstance(sizes, Tensor) and sizes and all(isinstance(size, Tensor) for size in sizes):
        sizes = torch.stack(list(sizes))
    rows = sizes.tolist() if isinstance(sizes, Tensor) else [list(size) for size in sizes]
    if len(rows) != num_images:
        raise ValueError(f"{name}: {len(rows)} sizes for {num_images} images; give one (height, width) for each.")
    if any(len(row) != 2 or not all(float(side).is_integer() and side >= 1 for side in row) for row in rows):
        raise ValueError(f"{name}: {rows}; expected (height, width) of each image in whole pixels, 1 or more.")
    return [(int(height), int(width)) for height, width in rows]


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number in [0, 1].")


def _warn_of_invalid(count: int) -> None:
    if count:
        warnings.warn(
            f"{count} queries have NaN or infinite logits or masks and give no segment; check the weights and the "
            "pixel values."
        )
