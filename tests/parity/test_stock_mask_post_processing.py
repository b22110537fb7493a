"""Maps of segments and classes are stock's to the pixel, and where stock is wrong it is said how."""

import copy

import pytest
import torch
from transformers.models.detr.image_processing_detr import DetrImageProcessor as Stock

from hf_detr import DetrImageProcessor
from tests.image_processing.mask_outputs import noise, scenes

SIZES = {"decoded": None, "larger": [(60, 70), (33, 99)], "smaller": [(11, 9), (25, 33)]}
MAKERS = {"noise": noise, "scenes": scenes}


def assert_same(ours, stock):
    assert len(ours) == len(stock)
    for one, other in zip(ours, stock, strict=True):
        assert one["segments_info"] == other["segments_info"]
        assert one["segmentation"].dtype == other["segmentation"].dtype
        assert torch.equal(one["segmentation"], other["segmentation"])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_instances_are_stocks(make, sizes):
    found = 0
    for seed in range(4):
        outputs = make(seed)
        for options in ({}, {"threshold": 0.9}, {"overlap_mask_area_threshold": 0.0, "mask_threshold": 0.2}):
            ours, stock = (
                processor().post_process_instance_segmentation(outputs, target_sizes=sizes, **options)
                for processor in (DetrImageProcessor, Stock)
            )
            assert_same(ours, stock)
            found += sum(len(one["segments_info"]) for one in ours)
    assert found > 20


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_classes_of_pixels_are_stocks(make):
    for sizes in SIZES.values():
        outputs = make(3)
        ours, stock = (
            processor().post_process_semantic_segmentation(outputs, sizes) for processor in (DetrImageProcessor, Stock)
        )
        for one, other in zip(ours, stock, strict=True):
            assert torch.equal(one, other)
            assert make is noise or len(one.unique()) > 1


def test_scores_of_classes_are_stocks():
    for sizes in SIZES.values():
        ours, stock = (
            processor().post_process_semantic_segmentation(scenes(4), sizes, return_segmentation_scores=True)
            for processor in (DetrImageProcessor, Stock)
        )
        for one, other in zip(ours, stock, strict=True):
            assert torch.equal(one["segmentation"], other["segmentation"])
            assert torch.allclose(one["segmentation_scores"], other["segmentation_scores"], atol=1e-6)


def test_run_lengths_are_stocks():
    ours, stock = (
        processor().post_process_instance_segmentation(
            scenes(5), target_sizes=[(60, 70), (33, 99)], return_coco_annotation=True, overlap_mask_area_threshold=0.3
        )
        for processor in (DetrImageProcessor, Stock)
    )
    for one, other in zip(ours, stock, strict=True):
        assert one["segmentation"] == other["segmentation"]
        assert len(one["segmentation"]) > 3


def test_an_image_in_which_nothing_was_found_is_stocks():
    outputs = scenes(0)
    outputs.logits[0, :, -1] += 100
    for sizes in (None, [(60, 70), (33, 99)]):
        ours, stock = (
            processor().post_process_panoptic_segmentation(outputs, 0.5, 0.5, 0.3, {6}, sizes)
            for processor in (DetrImageProcessor, Stock)
        )
        assert_same(ours, stock)
        assert not ours[0]["segments_info"]
        assert ours[1]["segments_info"]


def test_panoptic_segments_are_stocks_but_for_ids_that_stock_gives_twice():
    """After a fused segment stock counts on from that one's id, and a later object joins an earlier one."""
    collisions = 0
    for outputs in [make(seed) for make in MAKERS.values() for seed in range(6)]:
        ours, stock = (
            processor().post_process_panoptic_segmentation(
                outputs,
                label_ids_to_fuse={5, 6},
                target_sizes=[(60, 70), (33, 99)],
                overlap_mask_area_threshold=0.3,
            )
            for processor in (DetrImageProcessor, Stock)
        )
        for one, other in zip(ours, stock, strict=True):
            ours_infos, stock_infos = (
                [{**info, "id": None} for info in result["segments_info"]] for result in (one, other)
            )
            assert ours_infos == stock_infos
            owner = {}
            for info in one["segments_info"]:
                assert owner.setdefault(info["id"], info["label_id"]) == info["label_id"]
            things = [info["id"] for info in one["segments_info"] if not info["was_fused"]]
            assert len(set(things)) == len(things)
            # through the id that stock gave, every one of our segments is within one of stock's
            stock_id = {a["id"]: b["id"] for a, b in zip(one["segments_info"], other["segments_info"], strict=True)}
            stock_id[0] = 0
            renamed = copy.deepcopy(one["segmentation"]).apply_(stock_id.get)
            assert torch.equal(renamed, other["segmentation"])
            collisions += len(set(stock_id.values())) < len(stock_id)
    if not collisions:
        pytest.fail("stock no longer gives an id twice: say so in the table of differences")
