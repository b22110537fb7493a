"""Weights of 8 bits by `quantization_config` of from_pretrained: what is found stays what it was."""

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes, tiny_checkpoint


def torchao_weights():
    return {"quantization_config": TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())}


def torchao_dynamic():
    config = pytest.importorskip("torchao.quantization").Int8DynamicActivationInt8WeightConfig()
    return {"quantization_config": TorchAoConfig(config)}


def bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="pip install 'hf-detr[friends]'")
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}


@pytest.mark.parametrize("options", [torchao_weights, torchao_dynamic, bitsandbytes])
def test_a_quantised_detector_finds_the_same(options):
    options = options()
    plain = DetrForObjectDetection.from_pretrained(tiny_checkpoint()).eval()
    small = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), **options).eval()
    weights = [module.weight for module in small.modules() if isinstance(module, nn.Linear)]
    quantised = [weight for weight in weights if type(weight) is not nn.Parameter]
    assert len(quantised) > 0.9 * len(weights)
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    images = [row["image"] for row in digit_scenes(8, 96, seed=5, split="test")]
    inputs = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        expected, outputs = plain(**inputs), small(**inputs)
    difference = (outputs.logits.float().softmax(-1) - expected.logits.softmax(-1)).abs()
    assert 0 < difference.max() < 0.05
    assert (outputs.pred_boxes.float() - expected.pred_boxes).abs().max() < 0.02
    both = [processor.post_process_object_detection(one, threshold=0.5) for one in (outputs, expected)]
    assert [found["labels"].tolist() for found in both[0]] == [found["labels"].tolist() for found in both[1]]
