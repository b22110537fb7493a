"""Stages whose blocks write over their shortcuts give what the published blocks give."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_detr.nn.backbone import build_timm_backbone
from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from hf_detr.nn.fused_stages import FusedStage, _supported, part_stages

needs_onednn = pytest.mark.skipif(not _supported(torch.float32), reason="this CPU's torch has no oneDNN")
FUSED = "mkldnn::_convolution_pointwise_"


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


def operations_of(call) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()}


def operations(encoder, x) -> set[str]:
    return operations_of(torch.no_grad()(lambda: encoder(x)))


@needs_onednn
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnext26ts", "resnet26d", "seresnet33ts", "test_resnet"])
def test_fused_stages_give_the_features_of_stages_as_timm_wrote_them(name, layout):
    encoder, x = backbone(name), torch.randn(2, 3, 65, 96).contiguous(memory_format=layout)
    with torch.no_grad():
        fused = encoder(x)
        part_stages(encoder)
        plain = encoder(x)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@needs_onednn
@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
def test_a_stage_leaves_what_it_is_given_as_it_was(name):
    encoder = backbone(name)
    for stage in (part for part in encoder.modules() if isinstance(part, FusedStage)):
        # without a first block that downsamples, the input itself is the shortcut
        blocks = stage if stage[0].downsample is None else stage[1:]
        x = torch.randn(1, blocks[0].conv1.in_channels, 8, 8)
        before = x.clone()
        with torch.no_grad():
            fused = blocks(x)
            plain = x
            for block in blocks:
                plain = block(plain)
        assert torch.equal(x, before)
        torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@needs_onednn
def test_stages_that_learn_run_as_published_and_frozen_ones_before_them_fused():
    encoder, x = backbone("resnet18").train(), torch.randn(2, 3, 64, 96)
    encoder.freeze("layer2")
    gradients = []
    for part in (lambda: None, lambda: part_stages(encoder)):
        part()
        features = encoder(x)
        gradients.append(torch.autograd.grad(features.sum(), [p for p in encoder.parameters() if p.requires_grad]))
        if not gradients[1:]:
            for stage, channels, is_fused in ((encoder.model.layer2, 64, True), (encoder.model.layer3, 128, False)):
                maps = torch.randn(1, channels, 8, 8).contiguous(memory_format=torch.channels_last)
                assert (FUSED in operations_of(partial(stage, maps))) == is_fused
    for fused, plain in zip(*gradients, strict=True):
        assert (fused - plain).norm() <= 1e-3 * plain.norm()


@needs_onednn
def test_what_counts_operations_sees_those_of_pytorch():
    from torch.utils.flop_counter import FlopCounterMode

    encoder, x = backbone("resnet18"), torch.randn(1, 3, 64, 64)
    counts = []
    for part in (lambda: None, lambda: part_stages(encoder)):
        part()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e8


@needs_onednn
def test_the_stages_of_a_resnet_are_fused_where_nothing_forbids_it():
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
def test_stages_with_something_in_between_are_left_alone():
    x = torch.randn(1, 3, 64, 64)
    # blurs stand where a block strides, in all stages but the first
    for name, fused, kwargs in (("seresnet18", 0, {}), ("resnet18", 0, {"drop_path_rate": 0.1}),
                                ("resnet18", 0, {"act_layer": "gelu"}), ("resnetblur18", 1, {})):  # fmt: skip
        encoder = backbone(name, **kwargs)
        assert sum(type(part) is FusedStage for part in encoder.modules()) == fused
        with torch.no_grad():
            features = encoder(x)
        part_stages(encoder)
        with torch.no_grad():
            torch.testing.assert_close(features, encoder(x), rtol=0, atol=1e-5 * features.abs().max().item())


@needs_onednn
def test_under_autocast_stages_are_fused_in_bfloat16():
    if not _supported(torch.bfloat16):
        pytest.skip("this CPU has no bfloat16 convolutions")
    encoder, x = backbone("resnet26"), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = encoder(x)
        assert FUSED in operations(encoder, x)
        part_stages(encoder)
        plain = encoder(x)
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), plain.float(), rtol=0, atol=0.03 * plain.float().abs().max().item())


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_maps_of_one_cell_and_other_layouts_are_no_exception(name, dtype):
    if not _supported(dtype):
        pytest.skip("this CPU has no bfloat16 convolutions")
    encoder = backbone(name)
    images = [torch.randn(2, 3, *size) for size in ((1, 1), (5, 32), (32, 33), (33, 64))]
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        stages = [part for part in encoder.modules() if isinstance(part, FusedStage)]
        maps = [torch.randn(1, stage[0].conv1.in_channels, 3, 4).to(dtype) for stage in stages]  # channels first
        fused = [encoder(x) for x in images] + [stage(x) for stage, x in zip(stages, maps, strict=True)]
        part_stages(encoder)
        plain = [encoder(x) for x in images] + [stage(x) for stage, x in zip(stages, maps, strict=True)]
    for ours, theirs in zip(fused, plain, strict=True):
        bound = (1e-5 if dtype == torch.float32 else 0.03) * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)
