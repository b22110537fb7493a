"""The model's outputs -> detections."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr.image_processing_detr import DetrImageProcessor

NUM_CLASSES = 5


@pytest.fixture
def processor():
    return DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})


def outputs_of(objects, num_queries=6):
    """One image a list of (label, probability, cxcywh box); the other queries say "no object"."""
    probabilities = torch.full((len(objects), num_queries, NUM_CLASSES + 1), 1e-6)
    probabilities[..., -1] = 1
    boxes = torch.full((len(objects), num_queries, 4), 0.5)
    for i, image in enumerate(objects):
        for q, (label, probability, box) in enumerate(image):
            probabilities[i, q, -1] = 1 - probability
            probabilities[i, q, label] = probability
            boxes[i, q] = torch.tensor(box)
    return SimpleNamespace(logits=probabilities.log(), pred_boxes=boxes)


LEFT, LEFT_TOO, RIGHT = [0.25, 0.5, 0.5, 1.0], [0.25, 0.5, 0.48, 1.0], [0.75, 0.5, 0.5, 1.0]


def test_ground_truth_fed_back_comes_out_in_the_original_pixels(processor):
    rng = np.random.default_rng(0)
    for trial in range(20):
        sizes_hw = [tuple(int(v) for v in rng.integers(1, 700, 2)) for _ in range(3)]
        images = [Image.new("RGB", (w, h)) for h, w in sizes_hw]
        boxes_xyxy_px, annotations = [], []
        for i, (h, w) in enumerate(sizes_hw):
            corners = rng.random((4, 2, 2)) * [w, h]
            low, high = corners.min(1), corners.max(1)
            boxes_xyxy_px.append(np.concatenate([low, high], 1))
            objects = [
                {"bbox": [*a, *(b - a)], "category_id": int(rng.integers(NUM_CLASSES))}
                for a, b in zip(low, high, strict=True)
            ]
            annotations.append({"image_id": i, "annotations": objects})
        padding = {"pad_size": 700} if trial % 2 else {}
        labels = processor(images, annotations, return_tensors="pt", **padding)["labels"]
        logits = torch.full((3, 4, NUM_CLASSES + 1), -20.0)
        logits.scatter_(2, torch.stack([label["class_labels"] for label in labels])[..., None], 20.0)
        outputs = SimpleNamespace(logits=logits, pred_boxes=torch.stack([label["boxes"] for label in labels]))
        for target_sizes in (sizes_hw, torch.tensor(sizes_hw), [label["orig_size"] for label in labels]):
            detections = processor.post_process_object_detection(outputs, target_sizes=target_sizes)
            for found, label, expected in zip(detections, labels, boxes_xyxy_px, strict=True):
                assert np.abs(found["boxes"].numpy() - expected).max() < 1e-3
                assert torch.equal(found["labels"], label["class_labels"])


def test_detections_keep_the_order_of_the_queries_unless_only_the_best_are_wanted(processor):
    outputs = outputs_of([[(1, 0.6, LEFT), (2, 0.9, RIGHT), (3, 0.7, RIGHT), (4, 0.4, LEFT)], []])
    first, second = processor.post_process_object_detection(outputs)
    assert first["labels"].tolist() == [1, 2, 3]
    assert first["scores"].tolist() == pytest.approx([0.6, 0.9, 0.7], abs=1e-4)
    assert first["boxes"][0].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert (first["scores"].dtype, first["labels"].dtype, first["boxes"].dtype) == (
        torch.float32,
        torch.int64,
        torch.float32,
    )
    assert second["boxes"].shape == (0, 4)
    best = processor.post_process_object_detection(outputs, top_k=2)[0]
    assert best["labels"].tolist() == [2, 3]
    assert processor.post_process_object_detection(outputs, threshold=0.1, top_k=99)[0]["labels"].tolist() == [
        2,
        3,
        1,
        4,
    ]


def test_boxes_are_in_the_pixels_of_the_target_size(processor):
    outputs = outputs_of([[(1, 0.9, LEFT)], [(1, 0.9, RIGHT)]])
    first, second = processor.post_process_object_detection(outputs, target_sizes=[(100, 200), (10, 20)])
    assert first["boxes"].tolist() == [[0, 0, 100, 100]]
    assert second["boxes"].tolist() == [[10, 0, 20, 10]]


def test_every_class_can_have_its_threshold(processor):
    outputs = outputs_of([[(1, 0.6, LEFT), (2, 0.6, RIGHT), (3, 0.3, RIGHT)]])
    only = {2: 0.7, 3: 0.2}
    assert processor.post_process_object_detection(outputs, class_thresholds=only)[0]["labels"].tolist() == [1, 3]
    each = [0.5, 0.7, 0.5, 0.5, 0.5]
    assert processor.post_process_object_detection(outputs, class_thresholds=each)[0]["labels"].tolist() == [2]


def test_nms_is_off_by_default_and_knows_the_classes(processor):
    outputs = outputs_of([[(1, 0.6, LEFT_TOO), (2, 0.7, LEFT), (1, 0.9, LEFT), (1, 0.8, RIGHT)]])
    assert len(processor.post_process_object_detection(outputs)[0]["labels"]) == 4
    kept = processor.post_process_object_detection(outputs, nms_iou_threshold=0.7, target_sizes=[(40, 60)])[0]
    assert kept["labels"].tolist() == [2, 1, 1]
    assert kept["scores"].tolist() == pytest.approx([0.7, 0.9, 0.8], abs=1e-4)


def test_nan_scores_and_half_precision_are_survived(processor):
    outputs = outputs_of([[(1, 0.9, LEFT), (2, 0.9, RIGHT)]])
    outputs.logits[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="1 of 6 queries have NaN"):
        assert processor.post_process_object_detection(outputs)[0]["labels"].tolist() == [2]
    outputs = outputs_of([[(2, 0.9, RIGHT)]])
    halves = SimpleNamespace(logits=outputs.logits.bfloat16(), pred_boxes=outputs.pred_boxes.bfloat16())
    found = processor.post_process_object_detection(halves)[0]
    assert found["scores"].dtype == torch.float32
    assert found["labels"].tolist() == [2]


def test_one_copy_from_the_device_a_batch(processor, monkeypatch):
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copies.append(tuple(self.shape)), original(self))[1])
    outputs = outputs_of([[(1, 0.9, LEFT)]] * 8)
    for sizes in (None, [(10, 10)] * 8, torch.full((8, 2), 10)):
        copies.clear()
        processor.post_process_object_detection(outputs, target_sizes=sizes, top_k=3, nms_iou_threshold=0.5)
        assert copies == [(8, 6, 6)]


def test_nothing_is_remembered_for_gradients(processor):
    outputs = outputs_of([[(1, 0.9, LEFT)]])
    outputs.pred_boxes.requires_grad_()
    assert not processor.post_process_object_detection(outputs)[0]["boxes"].requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_sizes": [(1, 2)]}, ValueError, "1 sizes for 2 images"),
        ({"target_sizes": torch.ones(2, 3)}, ValueError, r"expected \(2, 2\)"),
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"nms_iou_threshold": 70}, ValueError, "IoU in"),
        ({"class_thresholds": {9: 0.5}}, ValueError, r"no classes \[9\]; the model has 0 to 4"),
        ({"class_thresholds": [0.5]}, ValueError, "1 values for 5 classes"),
        ({"threshold": 50}, ValueError, "threshold=50: expected a probability"),
        ({"threshold": float("nan")}, ValueError, "threshold=nan"),
        ({"treshold": 0.5}, TypeError, "treshold"),
    ],
)
def test_bad_arguments_are_named(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor.post_process_object_detection(outputs_of([[], []]), **arguments)


def test_a_result_takes_nothing_of_the_batch_along_when_pickled_and_can_be_written_to(processor):
    many, one = (processor.post_process_object_detection(outputs_of([[(1, 0.9, LEFT)]] * n)) for n in (64, 1))
    assert len(pickle.dumps(many[0])) == len(pickle.dumps(one[0]))
    many[0]["boxes"].zero_()
    assert torch.equal(many[1]["boxes"], one[0]["boxes"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
def test_nan_and_infinity_never_become_a_detection(processor, bad, threshold):
    """Law 12, whichever number of a query it is."""
    objects = [[(1, 0.9, LEFT), (2, 0.9, RIGHT)]]
    for column in range(NUM_CLASSES + 1):
        outputs = outputs_of(objects)
        outputs.logits[0, 0, column] = bad
        with pytest.warns(UserWarning, match="1 of 6 queries have NaN or infinite"):
            found = processor.post_process_object_detection(outputs, threshold)[0]
        assert 1 not in found["labels"].tolist()
        assert 2 in found["labels"].tolist()
    for column in range(4):
        outputs = outputs_of(objects)
        outputs.pred_boxes[0, 0, column] = bad
        with pytest.warns(UserWarning, match="1 of 6 queries"):
            found = processor.post_process_object_detection(outputs, threshold, target_sizes=[(10, 20)])[0]
        assert 1 not in found["labels"].tolist()
        assert found["boxes"].isfinite().all()


def test_no_threshold_keeps_every_query(processor):
    outputs = outputs_of([[(1, 0.9, LEFT), (2, 1e-3, RIGHT)], []])
    for found in processor.post_process_object_detection(outputs, threshold=None):
        assert len(found["labels"]) == 6
    found = processor.post_process_object_detection(outputs, class_thresholds={2: None})[0]
    assert found["labels"].tolist() == [1, 2]
    best = processor.post_process_object_detection(outputs, threshold=None, top_k=np.int64(2))[0]
    assert best["labels"].tolist()[0] == 1
    assert len(best["labels"]) == 2


def test_a_threshold_keeps_what_scores_above_it_and_changes_nothing(processor):
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 30.0):
        logits = torch.randn(4, 200, NUM_CLASSES + 1, generator=generator) * scale
        outputs = SimpleNamespace(logits=logits, pred_boxes=torch.rand(4, 200, 4, generator=generator))
        everything = processor.post_process_object_detection(outputs, threshold=None)
        assert all(len(result["scores"]) == 200 for result in everything)
        scores = torch.cat([result["scores"] for result in everything])
        for threshold in (0.0, 1e-6, *scores.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist(), 0.9999):
            for found, every in zip(
                processor.post_process_object_detection(outputs, threshold=threshold), everything, strict=True
            ):
                keep = every["scores"] > threshold
                assert all(torch.equal(found[name], every[name][keep]) for name in every)
