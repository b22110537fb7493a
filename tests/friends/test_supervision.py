"""Results go into supervision's Detections as they are."""

import numpy as np
import pytest
import supervision
import torch

from hf_detr import DetrImageProcessor
from hf_detr.data.masks import decode_segmentation
from tests.image_processing.mask_outputs import scenes

NAMES = {label: f"class {label}" for label in range(7)}
SIZES = [(60, 70), (33, 99)]


def converted(result) -> supervision.Detections:
    return supervision.Detections.from_transformers(result, id2label=NAMES)


@pytest.mark.parametrize("threshold", [None, 0.5, 1.0])
def test_detections_keep_boxes_scores_classes_and_names(threshold):
    results = DetrImageProcessor().post_process_object_detection(scenes(0), threshold=threshold, target_sizes=SIZES)
    for result in results:
        detections = converted(result)
        assert len(detections) == len(result["scores"])
        np.testing.assert_array_equal(detections.xyxy, result["boxes"].numpy().reshape(-1, 4))
        np.testing.assert_array_equal(detections.confidence, result["scores"].numpy())
        np.testing.assert_array_equal(detections.class_id, result["labels"].numpy())
        assert detections.data["class_name"].tolist() == [NAMES[label] for label in result["labels"].tolist()]
    assert len(results[0]["scores"]) == {None: 30, 0.5: len(results[0]["scores"]), 1.0: 0}[threshold]


@pytest.mark.parametrize("method", ["post_process_instance_segmentation", "post_process_panoptic_segmentation"])
def test_segments_become_masks_with_their_boxes(method):
    processor, seen = DetrImageProcessor(label_ids_to_fuse=[5, 6]), 0
    for threshold in (0.5, 1.0):  # above which nothing is
        for result, size_hw in zip(
            getattr(processor, method)(scenes(1), threshold, overlap_mask_area_threshold=0.0, target_sizes=SIZES),
            SIZES,
            strict=True,
        ):
            detections = converted(result)
            assert detections.mask.shape == (len(result["segments_info"]), *size_hw)
            for mask, info in zip(detections.mask, result["segments_info"], strict=True):
                np.testing.assert_array_equal(mask, result["segmentation"].numpy() == info["id"])
            assert detections.confidence.tolist() == [info["score"] for info in result["segments_info"]]
            seen += len(detections)
    assert seen > 4


def test_maps_of_classes_become_a_mask_a_class():
    [result, _] = DetrImageProcessor().post_process_semantic_segmentation(scenes(2), SIZES)
    detections = converted(result)
    assert detections.class_id.tolist() == result.unique().tolist()
    for mask, label in zip(detections.mask, detections.class_id, strict=True):
        np.testing.assert_array_equal(mask, result.numpy() == label)


def test_encoded_masks_are_decoded_first():
    [result, _] = DetrImageProcessor().post_process_masks(scenes(3), threshold=0.5, target_sizes=SIZES)
    masks = [torch.from_numpy(decode_segmentation(mask, SIZES[0])) for mask in result["masks"]]
    detections = converted({**result, "masks": torch.stack(masks)[:, None]})
    assert len(detections) == len(masks) > 1
    np.testing.assert_array_equal(detections.mask, torch.stack(masks).bool().numpy())
    np.testing.assert_array_equal(detections.xyxy, result["boxes"].numpy())
