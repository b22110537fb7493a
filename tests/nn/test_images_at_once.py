"""The backbone takes a large batch a few images at a time, and nobody can tell."""

import pytest
import torch

from hf_detr.nn import backbone as backbone_module
from hf_detr.nn.backbone import build_timm_backbone

IMAGE_BYTES = 64 * 96 * 4  # of one channel


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = build_timm_backbone("resnet18")
    encoder.freeze_norms()
    return encoder.eval()


def calls_of(encoder, x) -> list[int]:
    """Images in each call of the network, in order."""
    sizes = []
    features = encoder._features
    encoder._features = lambda images: sizes.append(len(images)) or features(images)
    try:
        encoder(x)
    finally:
        del encoder._features
    return sizes


@pytest.mark.parametrize(("at_once", "calls"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (4, [3, 2]), (5, [5])])
def test_parts_are_nearly_of_one_size_and_give_what_the_whole_gives(monkeypatch, encoder, at_once, calls):
    x = torch.randn(5, 3, 64, 96)
    with torch.no_grad():
        whole = encoder(x)
        monkeypatch.setattr(backbone_module, "_BYTES_AT_ONCE", at_once * IMAGE_BYTES)
        parts = encoder(x)
        assert calls_of(encoder, x) == calls
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_an_image_larger_than_that_goes_alone(monkeypatch, encoder):
    monkeypatch.setattr(backbone_module, "_BYTES_AT_ONCE", 1)
    with torch.no_grad():
        assert calls_of(encoder, torch.randn(2, 3, 64, 96)) == [1, 1]


def test_bfloat16_takes_twice_as_many(monkeypatch, encoder):
    monkeypatch.setattr(backbone_module, "_BYTES_AT_ONCE", 2 * IMAGE_BYTES)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert calls_of(encoder, torch.randn(4, 3, 64, 96)) == [4]


def test_the_whole_batch_goes_at_once_where_gradients_or_norms_or_listeners_may_tell(monkeypatch, encoder):
    monkeypatch.setattr(backbone_module, "_BYTES_AT_ONCE", 1)
    x = torch.randn(2, 3, 64, 96)
    assert calls_of(encoder, x) == [2]
    with torch.no_grad():
        assert calls_of(encoder.train(), x) == [2]
        heard = []
        encoder.eval().model.layer2.register_forward_hook(lambda *call: heard.append(len(call[-1])))
        encoder(x)
    assert heard == [2]


def test_a_batch_of_no_images_gives_no_features(encoder):
    with torch.no_grad():
        assert encoder(torch.randn(0, 3, 64, 96)).shape == (0, 512, 2, 3)
