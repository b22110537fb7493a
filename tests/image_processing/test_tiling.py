"""Objects seen in tiles are those of the image: each once, whole, and where it is."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_detr.data.masks import decode_segmentation
from hf_detr.image_processing.tiling import merge_tiles, tile_corners
from tests.evaluation.mask_cases import encode

SIZE_HW = (1000, 1800)
TILES = tile_corners(SIZE_HW, 640, 0.2)


def seen(objects, tiles=TILES, labels=None, smallest_part_px=4, too_small_px=0):
    """What a model without faults finds in each tile: of every object the visible part, in pixels of the tile.

    Scores differ by tile; parts below `smallest_part_px` are not found, nor in the first, whole view objects below
    `too_small_px`.
    """
    objects = torch.tensor(objects, dtype=torch.float32)
    labels = torch.tensor(labels or [0] * len(objects))
    results = []
    for number, corners in enumerate(tiles):
        left, top, right, bottom = map(float, corners)
        boxes = torch.stack([objects[:, 0::2].clamp(left, right), objects[:, 1::2].clamp(top, bottom)], 2).flatten(1)
        sides = boxes[:, 2:] - boxes[:, :2]
        found = (sides > (smallest_part_px if number else too_small_px)).all(1)
        scores = torch.full((int(found.sum()),), 0.9 - 0.01 * number)
        boxes = boxes[found] - torch.tensor([left, top, left, top])
        results.append({"scores": scores, "labels": labels[found], "boxes": boxes})
    return results


def assert_boxes(merged, expected):
    found = sorted(merged["boxes"].tolist())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(sorted(expected), dtype=torch.float32))


def test_tiles_cover_the_image_with_the_overlap_and_have_one_size():
    whole, *tiles = TILES
    assert whole == (0, 0, 1800, 1000)
    assert {(right - left, bottom - top) for left, top, right, bottom in tiles} == {(640, 640)}
    lefts = sorted({left for left, *_ in tiles})
    assert (lefts[0], lefts[-1] + 640) == (0, 1800)
    assert all(b - a <= 640 * 0.8 for a, b in pairwise(lefts))
    assert len(tiles) == 4 * 2


def test_an_image_no_larger_than_a_tile_is_seen_as_it_is():
    assert tile_corners((640, 500), 640, 0.2) == [(0, 0, 500, 640)]
    result = {"scores": torch.tensor([0.2, 0.9]), "labels": torch.tensor([0, 0]), "boxes": torch.rand(2, 4)}
    assert merge_tiles([result], [(0, 0, 500, 640)]) == result


def test_a_narrow_image_has_narrow_tiles():
    assert tile_corners((100, 1000), 640, 0.2)[1:] == [(0, 0, 640, 100), (360, 0, 1000, 100)]


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_that_is_none_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap="):
        tile_corners(SIZE_HW, 640, overlap)


def test_small_objects_anywhere_are_found_once_and_whole():
    generator = torch.Generator().manual_seed(0)
    corners = torch.stack(torch.meshgrid(torch.arange(5, 1750, 65), torch.arange(5, 950, 65), indexing="ij"), 2)
    corners = corners.reshape(-1, 2) + torch.randint(0, 10, (27 * 15, 2), generator=generator)
    objects = torch.cat((corners, corners + torch.randint(20, 50, (27 * 15, 2), generator=generator)), 1).tolist()
    merged = merge_tiles(seen(objects, too_small_px=10_000), TILES)
    assert_boxes(merged, objects)


def test_large_objects_are_found_once_and_whole_by_the_view_of_the_whole_image():
    objects = [[100, 100, 1500, 900], [1000, 300, 1790, 990]]
    assert_boxes(merge_tiles(seen(objects), TILES), objects)


@pytest.mark.parametrize(
    "box",
    [
        [100, 100, 900, 300],  # over one edge
        [100, 100, 1500, 300],  # over a whole tile
        [100, 100, 300, 800],  # over an edge below
        [300, 300, 900, 900],  # over a corner
        [100, 50, 1750, 950],  # over everything
    ],
)
def test_parts_of_an_object_that_only_tiles_see_are_joined(box):
    merged = merge_tiles(seen([box], too_small_px=10_000), TILES)
    assert_boxes(merged, [box])
    assert merged["scores"].item() == pytest.approx(0.9 - 0.01 * min(_tiles_with(box)))


def test_masks_are_those_of_the_whole_image_and_parts_are_put_together():
    """A triangle over several tiles, of which the whole view sees nothing, and a square in one."""
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    triangle = (x >= 100) & (y < 900) & (y - 100 >= (x - 100) / 2) & (x < 1500)
    square = (x >= 1600) & (x < 1650) & (y >= 20) & (y < 70)
    objects = [[100, 100, 1500, 900], [1600, 20, 1650, 70]]
    results = seen(objects, labels=[0, 1], too_small_px=10_000)
    for result, (left, top, right, bottom) in zip(results, TILES, strict=True):
        masks = [(triangle, square)[label][top:bottom, left:right] for label in result["labels"].tolist()]
        result["masks"] = [encode(mask) for mask in masks]
    merged = merge_tiles(results, TILES)
    assert_boxes(merged, objects)
    for label, mask in zip(merged["labels"].tolist(), merged["masks"], strict=True):
        np.testing.assert_array_equal(decode_segmentation(mask, SIZE_HW), (triangle, square)[label])


def _tiles_with(box):
    return [
        number
        for number, (left, top, right, bottom) in enumerate(TILES)
        if number and min(right, box[2]) - max(left, box[0]) > 4 and min(bottom, box[3]) - max(top, box[1]) > 4
    ]


def test_objects_of_other_classes_and_neighbours_are_not_joined():
    objects = [[100, 100, 900, 300], [120, 110, 880, 290], [100, 305, 900, 500]]
    merged = merge_tiles(seen(objects, labels=[0, 1, 0], too_small_px=10_000), TILES)
    assert_boxes(merged, objects)
    assert sorted(merged["labels"].tolist()) == [0, 0, 1]


def test_two_objects_that_one_tile_tells_apart_stay_two():
    objects = [[100, 100, 150, 150], [110, 100, 160, 150]]  # an IoU of 0.67
    assert_boxes(merge_tiles(seen(objects), TILES), objects)


def test_what_comes_out_is_sorted_by_score_and_beyond_the_image_only_where_the_model_said_so():
    objects = [[-3, 5, 40, 60], [500, 500, 700, 700]]
    results = seen(objects, smallest_part_px=1)
    results[1]["boxes"][0, 0] = -3.0
    results[0]["boxes"][0, 0] = -3.0
    merged = merge_tiles(results, TILES)
    assert merged["scores"].tolist() == sorted(merged["scores"].tolist(), reverse=True)
    assert_boxes(merged, objects)


def test_nothing_found_is_nothing():
    merged = merge_tiles(seen([[0, 0, 1, 1]], too_small_px=10_000), TILES)
    assert {name: tuple(values.shape) for name, values in merged.items()} == {
        "scores": (0,), "labels": (0,), "boxes": (0, 4),
    }  # fmt: skip
