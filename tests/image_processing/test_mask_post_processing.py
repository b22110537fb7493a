"""Masks and maps of a model's outputs; what they share with stock is in parity/test_stock_mask_post_processing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.host_visits import PRETENDED, HostVisits
from hotcoco import mask as coco_mask
from torch.nn.functional import interpolate
from transformers.models.detr.image_processing_detr import DetrImageProcessor as Stock

from hf_detr import DetrImageProcessor

from .mask_outputs import noise, scenes

SIZES = [(60, 70), (33, 99)]
METHODS = ("instance", "panoptic", "semantic")


@pytest.fixture
def processor():
    return DetrImageProcessor(label_ids_to_fuse=[5, 6])


def maps(processor, method, outputs, sizes=SIZES, **options):
    results = getattr(processor, f"post_process_{method}_segmentation")(outputs, target_sizes=sizes, **options)
    return [one if method == "semantic" else one["segmentation"] for one in results]


def decoded(result):
    return np.stack([coco_mask.decode(rle) for rle in result["masks"]])


def some_of(outputs, *queries):
    """What a model with those queries' masks alone gives: a list of queries for each image, filled up with -1."""
    width = max(map(len, queries))
    index = torch.tensor([[*one, *[-1] * (width - len(one))] for one in queries], dtype=torch.int64)
    masks = torch.stack([masks[one.clamp(min=0)] for masks, one in zip(outputs.pred_masks, index, strict=True)])
    return SimpleNamespace(**{**vars(outputs), "pred_masks": masks, "mask_queries": index})


@pytest.mark.parametrize("method", METHODS)
def test_padding_never_moves_a_map(processor, method):
    outputs, alone = scenes(0), []
    options = {} if method == "semantic" else {"overlap_mask_area_threshold": 0.0}
    processed = [(99, 131), (61, 90)]
    for i, (height, width) in enumerate(processed):
        masks = outputs.pred_masks[[i], :, : -(-height // 4), : -(-width // 4)]
        one = SimpleNamespace(logits=outputs.logits[[i]], pred_masks=masks)
        alone += maps(processor, method, one, SIZES[i : i + 1], **options)
    for sizes in (processed, torch.tensor(processed), [torch.tensor(size) for size in processed]):
        together = maps(processor, method, outputs, processed_sizes=sizes, **options)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(alone, maps(processor, method, outputs, **options), strict=True))


@pytest.mark.parametrize("method", ["instance", "panoptic", "masks"])
def test_queries_whose_masks_were_left_out_are_as_if_not_found(processor, method):
    outputs = scenes(1)
    kept = [[3, 8, 20, 21, 25], [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]]
    none = torch.full_like(outputs.logits, -1e4)
    none[..., -1] = 0
    for i, queries in enumerate(kept):
        none[i, queries] = outputs.logits[i, queries]
    if method == "masks":
        few = processor.post_process_masks(some_of(outputs, *kept), target_sizes=SIZES)
        every = processor.post_process_masks(SimpleNamespace(**{**vars(outputs), "logits": none}), target_sizes=SIZES)
        assert [len(one["masks"]) for one in few] == [5, 10]
        for one, other in zip(few, every, strict=True):
            assert one["masks"] == other["masks"]
            assert all(torch.equal(one[name], other[name]) for name in ("scores", "labels", "boxes"))
        return
    post_process = getattr(processor, f"post_process_{method}_segmentation")
    few = post_process(some_of(outputs, *kept), target_sizes=SIZES)
    every = post_process(SimpleNamespace(logits=none, pred_masks=outputs.pred_masks), target_sizes=SIZES)
    for one, other in zip(few, every, strict=True):
        assert one["segments_info"] == other["segments_info"]
        assert torch.equal(one["segmentation"], other["segmentation"])
    assert few[0]["segments_info"] or few[1]["segments_info"]


def test_masks_are_the_originals(processor):
    """Bilinear to the canvas, above one half, cut to the image, nearest to its original size."""
    outputs, processed, original = noise(2), [(100, 132), (100, 132)], [(60, 70), (133, 99)]
    boxes = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=original)
    results = processor.post_process_masks(outputs, target_sizes=original, processed_sizes=processed)
    resized = interpolate(outputs.pred_masks, size=(100, 132), mode="bilinear", align_corners=False)
    for i, result in enumerate(results):
        expected = interpolate((resized[i, None].sigmoid() > 0.5).float(), size=original[i], mode="nearest")[0].byte()
        assert np.array_equal(decoded(result), expected.numpy())
        assert all(rle["size"] == list(original[i]) for rle in result["masks"])
        assert all(torch.equal(result[name], boxes[i][name]) for name in ("scores", "labels", "boxes"))
    json.dumps(results[0]["masks"])


def test_without_processed_sizes_masks_are_resized_once(processor):
    outputs = noise(2)
    for threshold in (0.2, 0.5, 0.9):
        results = processor.post_process_masks(outputs, mask_threshold=threshold, target_sizes=SIZES, top_k=4)
        for i, result in enumerate(results):
            best = outputs.logits[i].softmax(-1)[:, :-1].amax(-1).argsort(descending=True)[:4]
            resized = interpolate(outputs.pred_masks[i, best][None], size=SIZES[i], mode="bilinear")[0].sigmoid()
            wrong = decoded(result) != (resized > threshold).numpy()
            assert not wrong[(resized - threshold).abs() > 1e-6].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mask_that_is_not_finite_gives_nothing(processor, value):
    outputs = scenes(3)
    good = processor.post_process_instance_segmentation(outputs, overlap_mask_area_threshold=0.3)
    scores = {info["score"] for info in good[0]["segments_info"]}
    best = outputs.logits[0].softmax(-1)[:, :-1].amax(-1)
    query = next(q for q in range(30) if round(best[q].item(), 6) in scores)
    outputs.pred_masks[0, query, 3, 4] = value
    with pytest.warns(UserWarning, match="1 queries have NaN or infinite"):
        bad = processor.post_process_instance_segmentation(outputs, overlap_mask_area_threshold=0.3)
    assert round(best[query].item(), 6) not in {info["score"] for info in bad[0]["segments_info"]}
    with pytest.warns(UserWarning, match="1 queries have NaN or infinite"):
        assert len(maps(processor, "semantic", outputs)[0].unique()) > 1
    with pytest.warns(UserWarning, match="1 of 60 queries have NaN or infinite"):
        assert len(processor.post_process_masks(outputs)[0]["masks"]) == 29


def test_logits_that_are_not_finite_give_nothing_and_are_counted(processor):
    outputs = scenes(3)
    outputs.logits[0, 0, 1], outputs.logits[1, 2, 3] = float("nan"), float("-inf")
    for method in ("panoptic", "semantic"):
        with pytest.warns(UserWarning, match="2 queries have NaN or infinite"):
            assert all(np.isfinite(one).all() for one in maps(processor, method, outputs))


def test_masks_in_half_precision_are_finite_where_their_sum_is_not(processor):
    outputs = scenes(3, grid_hw=(100, 132))
    outputs.pred_masks = outputs.pred_masks.half() * 8
    assert outputs.pred_masks.sum((-2, -1)).isinf().any()
    assert processor.post_process_panoptic_segmentation(outputs, 0.5, 0.5, 0.3)[0]["segments_info"]


def test_masks_in_another_order_keep_their_boxes(processor):
    outputs, order = scenes(1), torch.arange(29, -1, -1).tolist()
    forth = processor.post_process_masks(outputs, target_sizes=SIZES)
    back = processor.post_process_masks(some_of(outputs, order, order), target_sizes=SIZES)
    for one, other in zip(forth, back, strict=True):
        assert one["masks"] == other["masks"][::-1]
        assert torch.equal(one["boxes"], other["boxes"].flip(0))


def test_an_image_without_decoded_masks_has_nothing(processor):
    outputs = some_of(scenes(1), [], [])
    assert [one["masks"] for one in processor.post_process_masks(outputs)] == [[], []]
    assert maps(processor, "panoptic", outputs)[0].unique().tolist() == [-1]
    assert maps(processor, "semantic", outputs)[1].unique().tolist() == [0]


@pytest.mark.parametrize("method", [*METHODS, "masks"])
def test_maps_of_the_full_size_exist_a_few_at_a_time(processor, method):
    outputs, size = noise(0, num_images=1, num_queries=60), (300, 400)
    post_process = getattr(processor, f"post_process_{method}" + "_segmentation" * (method != "masks"))
    with torch.profiler.profile(profile_memory=True) as profile:
        post_process(outputs, target_sizes=[size])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    one_map = 4 * size[0] * size[1]
    assert 0.9 * one_map <= largest <= 3 * one_map


def test_a_batch_visits_the_host_at_most_twice_and_gives_what_the_host_gives(processor):
    for method in METHODS:
        outputs, options = scenes(2), {"overlap_mask_area_threshold": 0.3} if method != "semantic" else {}
        expected = maps(processor, method, outputs, **options)
        with HostVisits() as counter:
            there = SimpleNamespace(**{name: value.to(PRETENDED) for name, value in vars(outputs).items()})
            counter.reset()
            results = maps(processor, method, there, **options)
            assert counter.visits.total() <= 2, counter.visits
        assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


def test_classes_to_fuse_are_the_processors_unless_given(processor, tmp_path):
    def fused(*arguments):
        results = processor.post_process_panoptic_segmentation(scenes(0), 0.5, 0.5, 0.3, *arguments)
        return {info["label_id"] for one in results for info in one["segments_info"] if info["was_fused"]}

    assert fused() == {5, 6}
    assert fused({5}) == {5}
    assert fused(set()) == set()
    processor.save_pretrained(tmp_path)
    assert DetrImageProcessor.from_pretrained(tmp_path).label_ids_to_fuse == [5, 6]
    assert Stock.from_pretrained(tmp_path).size == processor.size
    assert "label_ids_to_fuse" not in DetrImageProcessor().to_dict()
    with pytest.raises(ValueError, match=r"label_ids_to_fuse=\[-1\]: expected class ids"):
        DetrImageProcessor(label_ids_to_fuse=[-1])


def test_run_lengths_of_an_image_without_segments_are_an_empty_list(processor):
    outputs = scenes(0)
    outputs.logits[0, :, -1] += 100
    results = processor.post_process_instance_segmentation(outputs, 0.5, 0.5, 0.3, return_coco_annotation=True)
    assert [bool(one["segmentation"]) for one in results] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_sizes": [(5, 5)]}, "target_sizes: 1 sizes for 2 images"),
        ({"target_sizes": [(5, 5), (0, 5)]}, "target_sizes: .*whole pixels"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"mask_threshold": -1}, "mask_threshold=-1"),
        ({"processed_sizes": [(101, 130), (50, 50)]}, "do not fit masks of 25 x 33"),
    ],
)
def test_what_cannot_be_right_is_named(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_panoptic_segmentation(noise(0), **options)
    outputs = noise(0)
    outputs.pred_masks = outputs.pred_masks[:, :5]
    with pytest.raises(ValueError, match="do not match"):
        processor.post_process_panoptic_segmentation(outputs)
