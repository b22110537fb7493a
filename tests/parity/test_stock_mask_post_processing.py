"""Maps of segments and classes are stock's to the pixel, and where stock is wrong it is said how."""

import copy

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
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


@pytest.fixture(scope="module")
def stock_model():
    """Random, and of all classes sure enough to find something."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_queries": 9, "encoder_layers": 1, "decoder_layers": 1, "num_labels": 5}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    config = transformers.DetrConfig(backbone="resnet18", use_pretrained_backbone=False, **sizes, **heads)
    model = transformers.DetrForSegmentation(config).eval()
    with torch.no_grad():
        model.detr.class_labels_classifier.bias[-1] -= 8
    return model


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_it_serves_stocks_pipeline(stock_model, subtask):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8))
    options = {} if subtask == "semantic" else {"mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0}
    ours, stock = (
        transformers.pipeline("image-segmentation", model=stock_model, image_processor=processor, device="cpu")(
            image, subtask=subtask, threshold=0.0, **options
        )
        for processor in (kind(size={"shortest_edge": 64, "longest_edge": 128}) for kind in (DetrImageProcessor, Stock))
    )
    assert len(ours) == len(stock) > 0
    for one, other in zip(ours, stock, strict=True):
        assert (one["label"], one["score"]) == (other["label"], other["score"])
        assert np.array_equal(one["mask"], other["mask"])
