"""Thresholds of classes in preprocessor_config.json: used where a call names none, and never taken on trust."""

import json

import numpy as np
import pytest
import torch
import transformers

from hf_detr import CocoEvaluator, DetrImageProcessor, PanopticEvaluator

from .mask_outputs import scenes
from .test_post_processing import LEFT, RIGHT, outputs_of

Stock = transformers.DetrImageProcessor
SAVED = {1: 0.7, 3: 0.2}
MASK_METHODS = ("post_process_instance_segmentation", "post_process_panoptic_segmentation")


@pytest.fixture
def outputs():
    return outputs_of([[(1, 0.6, LEFT), (2, 0.6, RIGHT), (3, 0.3, RIGHT)]])


def labels(processor, outputs, **options) -> list[int]:
    return processor.post_process_object_detection(outputs, **options)[0]["labels"].tolist()


def test_saved_thresholds_hold_where_a_call_names_none_and_there_alone(outputs):
    processor = DetrImageProcessor(class_thresholds=SAVED)
    assert labels(processor, outputs) == labels(processor, outputs, threshold="saved") == [2, 3]
    assert labels(processor, outputs, threshold=0.5) == [1, 2]
    assert labels(processor, outputs, threshold=0.5, class_thresholds={3: 0.1}) == [1, 2, 3]
    assert labels(processor, outputs, class_thresholds={1: 0.5}) == [1, 2, 3]
    assert len(labels(processor, outputs, threshold=None)) == 6
    assert [processor.threshold_of(label) for label in range(4)] == [0.5, 0.7, 0.5, 0.2]
    with pytest.raises(ValueError, match="threshold='best': expected a probability"):
        labels(processor, outputs, threshold="best")


def test_without_saved_thresholds_the_default_is_stocks():
    outputs, seen = scenes(0), 0
    outputs.logits[..., -1] += 7  # so that scores lie around the default
    ours, stock = DetrImageProcessor(), Stock()
    for method in ("post_process_object_detection", *MASK_METHODS):
        for one, other in zip(getattr(ours, method)(outputs), getattr(stock, method)(outputs), strict=True):
            assert one.keys() == other.keys()
            if "segments_info" in one:
                assert one["segments_info"] == other["segments_info"]
                assert torch.equal(one["segmentation"], other["segmentation"])
                seen += len(one["segments_info"])
            else:
                assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)
                seen += len(one["scores"])
    assert seen > 6


def test_segments_and_masks_keep_what_scores_above_the_threshold_of_its_class():
    outputs = scenes(0)
    everything = DetrImageProcessor().post_process_masks(outputs)[0]
    bar = {label: 0.9 if label % 2 else 0.1 for label in range(7)}
    processor = DetrImageProcessor(class_thresholds=bar)
    assert len(processor.post_process_masks(outputs)[0]["scores"]) == len(everything["scores"])  # AP wants every score
    found = processor.post_process_masks(outputs, threshold="saved")[0]
    expected = [
        index
        for index, (label, score) in enumerate(zip(everything["labels"], everything["scores"], strict=True))
        if score > bar[int(label)]
    ]
    assert 0 < len(expected) < len(everything["scores"])
    assert torch.equal(found["scores"], everything["scores"][expected])
    assert found["masks"] == [everything["masks"][index] for index in expected]
    for method in MASK_METHODS:
        post_process = getattr(processor, method)
        options = {"overlap_mask_area_threshold": 0.0, "mask_threshold": 0.0}  # nothing is dropped for another reason
        low = post_process(outputs, threshold=0.1, **options)[0]["segments_info"]
        kept = post_process(outputs, **options)[0]["segments_info"]
        wanted = [(one["label_id"], one["score"]) for one in low if one["score"] > bar[one["label_id"]]]
        assert {(one["label_id"], one["score"]) for one in kept} >= set(wanted)
        assert all(one["score"] > bar[one["label_id"]] for one in kept)
        assert len(kept) < len(low)


def test_what_is_measured_does_not_depend_on_saved_thresholds():
    """AP takes every score, and panoptic quality what is above 0.5."""
    plain, saved = DetrImageProcessor(), DetrImageProcessor(class_thresholds=dict.fromkeys(range(7), 1.0))
    outputs, sizes = scenes(0), [(60, 70), (33, 99)]
    assert len(saved.post_process_object_detection(outputs)[0]["scores"]) == 0
    for evaluator in (CocoEvaluator(), CocoEvaluator(iou_type="segm"), PanopticEvaluator()):
        both = [evaluator.post_process(one, outputs, sizes, None) for one in (plain, saved)]
        for one, other in zip(*both, strict=True):
            assert str(one) == str(other)


def test_a_file_with_thresholds_is_read_here_and_by_stock_which_passes_them_over(tmp_path, outputs):
    processor = DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, class_thresholds=SAVED)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["class_thresholds"] == {"1": 0.7, "3": 0.2}
    again = DetrImageProcessor.from_pretrained(tmp_path)
    assert again.class_thresholds == SAVED
    assert labels(again, outputs) == [2, 3]
    stock = Stock.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert torch.equal(
        stock(image, return_tensors="pt")["pixel_values"], again(image, return_tensors="pt")["pixel_values"]
    )
    assert stock.post_process_object_detection(outputs)[0]["labels"].tolist() == [1, 2]
    DetrImageProcessor().save_pretrained(tmp_path)
    assert "class_thresholds" not in json.loads((tmp_path / "preprocessor_config.json").read_text())


@pytest.mark.parametrize(
    "damaged",
    [
        "[0.5]", '"0.5"', '{"cat": 0.5}', '{"1": "0.5"}', '{"1": NaN}', '{"1": 1.5}', '{"1": -0.1}', '{"1": true}',
        '{"1": null}', '{"1": [0.5]}', '{"-1": 0.5}', '{"01": 0.5}', '{"1.0": 0.5}', '{"1": 1e999}',
        '{"__class__": {"py/object": "os.system"}}',
    ],
)  # fmt: skip
def test_a_damaged_value_is_an_error_that_names_file_field_and_remedy(tmp_path, damaged):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(f'{{"size": 800, "class_thresholds": {damaged}}}')
    for load in (DetrImageProcessor.from_pretrained, lambda folder: DetrImageProcessor.from_json_file(file)):
        with pytest.raises(ValueError, match=r"^preprocessor_config.json: class_thresholds.*--save-thresholds"):
            load(tmp_path)


def test_a_threshold_of_a_class_that_the_model_has_not_is_an_error(outputs):
    with pytest.raises(ValueError, match=r"class_thresholds has the class 5, and the model's are 0 to 4; write them"):
        labels(DetrImageProcessor(class_thresholds={5: 0.3}), outputs)
    assert labels(DetrImageProcessor(class_thresholds={5: 0.3}), outputs, threshold=0.5) == [1, 2]
    with pytest.raises(TypeError, match="class_thresholds"):
        DetrImageProcessor()(np.zeros((8, 8, 3), np.uint8), class_thresholds={1: 0.5})
