"""Residual blocks in one pass give what they give in many."""

import pytest
import torch
from torch import nn

from hf_detr.nn.backbone import build_timm_backbone
from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from hf_detr.nn.fused_blocks import _ConvolutionReLU, _supported, part_blocks

needs_onednn = pytest.mark.skipif(not _supported(torch.float32), reason="this CPU's torch has no oneDNN")
FUSED = "mkldnn::_convolution_pointwise"


def backbone(name: str, **timm_kwargs):
    torch.manual_seed(0)
    encoder = build_timm_backbone(name, timm_kwargs=timm_kwargs)
    for norm in (part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    encoder.freeze_norms()
    return encoder.eval()


def operations(encoder, x) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        encoder(x)
    return {event.key for event in profile.key_averages()}


@needs_onednn
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnext26ts", "resnet26d", "seresnet33ts", "test_resnet"])
def test_fused_blocks_give_the_features_of_blocks_as_timm_wrote_them(name, layout):
    encoder, x = backbone(name), torch.randn(2, 3, 65, 96).contiguous(memory_format=layout)
    with torch.no_grad():
        fused = encoder(x)
        part_blocks(encoder)
        plain = encoder(x)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@needs_onednn
@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_fused_blocks_have_the_gradients_of_blocks_as_timm_wrote_them(name):
    encoder, x = backbone(name).train(), torch.randn(2, 3, 65, 96)
    weights = torch.randn_like(encoder(x))
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    x.requires_grad_()
    fused = torch.autograd.grad((encoder(x) * weights).sum(), [x, *parameters])
    part_blocks(encoder)
    plain = torch.autograd.grad((encoder(x) * weights).sum(), [x, *parameters])
    encoder.double()
    exact = torch.autograd.grad((encoder(x.double()) * weights.double()).sum(), parameters)
    for ours, theirs, best in zip(fused[1:], plain[1:], exact, strict=True):
        # rounding turns some ReLUs the other way: no worse than without
        wrong, theirs_wrong = ((gradient - best).norm() / best.norm() for gradient in (ours, theirs))
        assert wrong < max(1e-4, 3 * theirs_wrong)
    assert (fused[0] - plain[0]).norm() < 1e-3 * plain[0].norm()


@needs_onednn
def test_the_gradient_of_a_fused_convolution_is_that_of_its_parts():
    torch.manual_seed(0)
    x, shortcut = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(2, 6, 5, 4, requires_grad=True)
    weight, bias = torch.randn(6, 2, 3, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    for added in (shortcut, None):
        inputs = [t for t in (x, weight, bias, added) if t is not None]
        fused = _ConvolutionReLU.apply(x, weight, bias, added, (1, 1), (2, 2), (1, 1), 2)
        plain = torch.nn.functional.conv2d(x, weight, bias, 2, 1, 1, 2)
        plain = (plain if added is None else plain + added).relu()
        torch.testing.assert_close(fused, plain)
        wanted = torch.randn_like(plain)
        for ours, theirs in zip(
            torch.autograd.grad(fused, inputs, wanted), torch.autograd.grad(plain, inputs, wanted), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_the_blocks_of_a_resnet_are_fused_where_nothing_forbids_it():
    encoder, x = backbone("resnet26"), torch.randn(1, 3, 64, 64)
    assert FUSED in operations(encoder, x)
    assert FUSED not in operations(encoder.double(), x.double())
    encoder.float()
    heard = []
    listening = encoder.model.layer1[0].act2.register_forward_hook(lambda *_: heard.append(True))
    with torch.no_grad():
        encoder(x)
    assert heard == [True]
    listening.remove()
    encoder.unfreeze_norms()
    assert FUSED not in operations(encoder, x)
    assert not [part for part in encoder.modules() if isinstance(part, FrozenBatchNorm2d)]


@needs_onednn
def test_blocks_with_something_in_between_are_left_alone():
    x = torch.randn(1, 3, 64, 64)
    # the first block of a network with stochastic depth has none, and blurs stand where a block strides
    for name, fused, kwargs in (("seresnet18", 0, {}), ("resnet18", 1, {"drop_path_rate": 0.1}),
                                ("resnet18", 0, {"act_layer": "gelu"}), ("resnetblur18", 5, {})):  # fmt: skip
        encoder = backbone(name, **kwargs)
        assert sum("Fused" in type(part).__name__ for part in encoder.modules()) == fused
        with torch.no_grad():
            features = encoder(x)
        part_blocks(encoder)
        with torch.no_grad():
            torch.testing.assert_close(features, encoder(x), rtol=0, atol=1e-5 * features.abs().max().item())


@needs_onednn
def test_under_autocast_blocks_are_fused_in_bfloat16():
    if not _supported(torch.bfloat16):
        pytest.skip("this CPU has no bfloat16 convolutions")
    encoder, x = backbone("resnet26"), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = encoder(x)
        assert FUSED in operations(encoder, x)
        part_blocks(encoder)
        plain = encoder(x)
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), plain.float(), rtol=0, atol=0.03 * plain.float().abs().max().item())
