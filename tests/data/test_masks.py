import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr.data.masks import (
    ENTRY_FIELDS,
    MaskError,
    as_entry,
    box_of,
    boxes_from_masks,
    decode_segmentation,
    encode_mask,
)

from .mask_folders import rle_list

coco_mask = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def random_masks(count=12):
    rng = np.random.default_rng(0)
    for k in range(count):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        yield (rng.random((height, width)) < (0, 0.02, 0.5, 1)[k % 4]).astype(np.uint8)


def test_polygons_are_drawn_as_pycocotools_draws_them():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(2, 80, 2))
        points = [rng.uniform(-5, 85, 2 * int(rng.integers(3, 9))) for _ in range(int(rng.integers(1, 4)))]
        polygons = [(one if rng.random() < 0.5 else one.round()).tolist() for one in points]
        wanted = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        assert np.array_equal(decode_segmentation(polygons, (height, width)), wanted)


def test_masks_are_encoded_and_decoded_as_by_pycocotools():
    for mask in random_masks():
        rle = coco_mask.encode(np.asfortranarray(mask))
        assert encode_mask(mask)["counts"] == rle["counts"].decode()
        assert encode_mask(torch.from_numpy(mask).bool()) == encode_mask(mask)
        forms = [rle, {**rle, "counts": rle["counts"].decode()}, rle_list(mask), encode_mask(mask), mask]
        for form in [*forms, torch.from_numpy(mask), mask.astype(bool)]:
            decoded = decode_segmentation(form, mask.shape)
            assert decoded.dtype == np.uint8
            assert np.array_equal(decoded, mask)
            assert as_entry(form) == encode_mask(mask)
        assert np.array_equal(boxes_from_masks(mask[None])[0], coco_mask.toBbox(rle))


def test_every_form_becomes_one_entry_and_an_entry_stays_as_it_is():
    polygons = [[0, 0, 5, 0, 5.5, 5], [1, 1, 2, 2, 1, 2, 0, 1]]
    for form in (polygons, {"counts": [4, 2], "size": (2, 3)}, {"file": "a.png", "id": np.int64(3)}):
        entry = as_entry(form)
        assert set(entry) == set(ENTRY_FIELDS)
        assert as_entry(entry) == entry
    assert as_entry(polygons)["polygons"] == polygons
    for nothing in (None, [], {}, dict.fromkeys(ENTRY_FIELDS), {"polygons": []}):
        assert as_entry(nothing) is None


def test_a_segment_is_a_palette_index_or_a_colour(tmp_path):
    ids = np.array([[0, 1, 2], [2, 2, 300]])
    palette = Image.fromarray((ids % 256).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [9] * 759)
    palette.save(tmp_path / "index.png")
    colours = np.stack((ids % 256, ids // 256, 0 * ids), axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "colour.png")
    for name in ("index.png", "colour.png"):
        mask = decode_segmentation({"file": str(tmp_path / name), "id": 2}, (2, 3))
        assert mask.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert decode_segmentation({"file": str(tmp_path / "colour.png"), "id": 300}, (2, 3)).tolist()[1] == [0, 0, 1]


def test_what_gives_no_mask_says_what_it_is(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    Image.new("L", (3, 2)).save(tmp_path / "photo.bmp")
    in_file = lambda name, number=1: {"file": str(tmp_path / name), "id": number}  # noqa: E731
    for given, kind, message in [
        ([[1, 2, 3, 4]], "polygon of fewer than 3 points", r"polygon \[1, 2, 3, 4\]; expected x, y pairs of at least"),
        ([[1, 2, 3, 4, 5, 6, 7]], "unreadable", "expected x, y pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "unreadable", "finite points"),
        ([[1, 2, 3, 4, 5, 1e12]], "unreadable", "finite points"),  # which would take all the memory there is
        ([1, 2, 3, 4, 5, 6], "unreadable", "polygon 1; .*a list in the list of polygons"),
        ("polygon", "unreadable", "segmentation 'polygon'"),
        ({"shape": 3}, "unreadable", "expected polygons, a run-length encoding"),
        ({"size": [2, 3], "counts": [4, 1]}, "unreadable", r"cannot be decoded.*add up to 2 x 3"),
        ({"size": [2, 3], "counts": "\u20ac"}, "unreadable", "cannot be decoded"),
        ({"size": [3], "counts": "x"}, "unreadable", r"size \[3\]; expected \[height, width\]"),
        ({"size": [3, 3], "counts": [4, 5]}, "size differs", r"size \[3, 3\], its image \[2, 3\]"),
        ({"file": "a.png"}, "unreadable", "expected a file and the id"),
        (in_file("a.png"), "id not in the PNG", r"a\.png: no pixel has the id 1"),
        (in_file("b.png"), "file missing", r"b\.png: no such PNG"),
        (in_file("broken.png"), "file corrupt", r"broken\.png: not a readable PNG"),
        (in_file("photo.bmp"), "file corrupt", r"photo\.bmp: not a readable PNG"),
        (np.ones((4, 4)), "size differs", r"the mask has size \[4, 4\]"),
        (None, "none", "segmentation None says nothing"),
    ]:
        with pytest.raises(MaskError, match=f"image 7: object 2: .*{message}") as caught:
            decode_segmentation(given, (2, 3), "image 7: object 2")
        assert caught.value.kind == kind
    with pytest.raises(MaskError, match="size"):
        decode_segmentation(in_file("a.png", 0), (3, 3))


def test_boxes_are_tight_and_those_of_empty_masks_are_zero():
    masks = torch.zeros(3, 5, 7, dtype=torch.uint8)
    masks[0, 1:4, 2:7], masks[1] = 1, 1
    assert boxes_from_masks(masks).tolist() == [[2, 1, 5, 3], [0, 0, 7, 5], [0, 0, 0, 0]]
    assert boxes_from_masks(masks[:0]).shape == (0, 4)
    assert box_of([[1.5, 2, 6, 2, 6, 4.25]], (5, 7)) == (1.5, 2, 4.5, 2.25)
    assert box_of(encode_mask(masks[0]), (5, 7)) == (2, 1, 5, 3)
    assert box_of(None, (5, 7)) is None
