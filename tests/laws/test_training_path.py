"""The quick way through a training step (norms folded into convolutions, channels last) is the published one.

Rounding moves single activations across a ReLU's corner, and with them single gradients by more than 1e-4 in float32,
whichever order is taken. In float64 no activation is so near: there both orders must agree to many digits, and they do;
the golden cases, in float32, hold the published order (tests/parity).
"""

import pytest
import torch

from tests.small_models import images, small_model, targets

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18", "test_efficientnet", "regnety_002"])
def test_training_mode_has_the_gradients_of_the_published_order(backbone):
    pixels, mask = images((64, 96), (96, 64))
    gradients, losses = [], []
    for training in (False, True):  # eval mode with gradients computes in the published order
        model = small_model(backbone=backbone, freeze_backbone_until=None, **NO_DROPOUT).double().train(training)
        outputs = model(pixels.double(), mask, labels=targets(3, 5))
        outputs.loss.backward()
        losses.append(outputs.loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-8 * scale.item() + 1e-12, msg=name)
