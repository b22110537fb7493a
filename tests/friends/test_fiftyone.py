"""Results and models go into FiftyOne as they are; its label classes need no database."""

import numpy as np
import pytest
import torch

pytest.importorskip("fiftyone", reason="pip install 'hf-detr[friends]'")

import fiftyone.utils.transformers as fiftyone

from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes, tiny_checkpoint


@pytest.fixture(scope="module")
def found():
    """The small detector, an image of other sides, and what is in it."""
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint()).eval()
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    image = digit_scenes(1, 96, seed=5, split="test")[0]["image"].resize((150, 120))
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    return model, image, processor.post_process_object_detection(outputs, target_sizes=[image.size[::-1]])


def assert_same(detections, result, names, size_wh) -> None:
    assert [one.label for one in detections] == [names[label] for label in result["labels"].tolist()]
    assert [one.confidence for one in detections] == pytest.approx(result["scores"].tolist(), abs=1e-4)
    left, top, width, height = np.array([one.bounding_box for one in detections]).T * [[side] for side in size_wh * 2]
    boxes = np.stack((left, top, left + width, top + height), axis=1)
    np.testing.assert_allclose(boxes, result["boxes"], atol=0.02)  # it rounds pixels to two digits


def test_results_become_its_detections(found):
    model, image, results = found
    detections = fiftyone.to_detections(results, model.config.id2label, [image.size]).detections
    assert len(detections) > 0
    assert_same(detections, results[0], model.config.id2label, image.size)


def test_a_model_becomes_its_model(found):
    model, image, [result] = found
    wrapped = fiftyone.convert_transformers_model(model)
    with torch.no_grad(), wrapped:
        detections = wrapped.predict(np.array(image)).detections
    sure = [one for one in detections if one.confidence > 0.5]
    assert_same(sure, result, model.config.id2label, image.size)
