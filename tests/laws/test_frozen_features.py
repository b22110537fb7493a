"""Law 5: frozen features are the timm network's in eval mode, and batch statistics never move."""

import warnings

import pytest
import timm
import torch

from hf_detr import DetrForObjectDetection
from hf_detr.nn.backbone import build_timm_backbone
from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from tests.small_models import MODELS, images, small_config, small_model, targets, with_statistics

BACKBONES = (
    "resnet18",
    "regnety_002",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
)


@pytest.mark.parametrize("name", BACKBONES)
def test_frozen_features_equal_timms_in_eval_mode(name):
    ours = with_statistics(build_timm_backbone(name, num_maps=4))
    size = {"strict_img_size": False} if name.startswith("swin") else {}
    reference = timm.create_model(name, features_only=True, **size).eval()
    reference.load_state_dict(ours.model.state_dict(), strict=False)
    ours.freeze_norms()
    ours.train()
    for part in ours.modules():  # regularisation is not what is frozen
        if "Drop" in type(part).__name__:
            part.eval()
    pixel_values, _ = images((96, 128))
    with torch.no_grad():
        found, wanted = ours(1.5 * pixel_values), reference(1.5 * pixel_values)[-4:]
    assert len(found) == 4  # masks take four, detection the last
    for features, expected in zip(found, wanted, strict=True):
        if name.startswith("swin"):
            expected = expected.permute(0, 3, 1, 2)
        assert features.shape == expected.shape
        assert torch.allclose(features, expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
@MODELS
def test_batch_statistics_never_move(make, backbone):
    model = make(backbone=backbone).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in before)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(2):
        sizes_hw = ((64, 64), (64, 64))
        model(images(*sizes_hw)[0], labels=targets(2, 3, sizes_hw=sizes_hw)).loss.backward()
        optimizer.step()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_frozen_norms_are_no_parameters():
    model = small_model()
    norms = [part for part in model.modules() if isinstance(part, FrozenBatchNorm2d)]
    assert norms
    assert not any(list(norm.parameters()) for norm in norms)


def test_resnets_freeze_stem_and_first_stage_as_published():
    model = small_model(backbone="resnet18")
    frozen = {name for name, p in model.model.backbone.conv_encoder.model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1.weight", *(f"layer1.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2))}


def test_other_networks_freeze_nothing_but_norms():
    model = small_model(backbone="convnext_atto")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("until", "first_trained"),
    [("layer2", "layer3"), (2, "layer3"), ("act1", "layer1"), (None, "conv1"), ("all", None)],
)
def test_freeze_backbone_freezes_exactly_up_to_a_stage(until, first_trained):
    model = small_model(backbone="resnet18")
    model.freeze_backbone(until=until)
    trained = [name for name, p in model.model.backbone.conv_encoder.model.named_parameters() if p.requires_grad]
    assert (trained[0].split(".")[0] if trained else None) == first_trained
    assert model.config.freeze_backbone_until == until


def test_an_unknown_stage_is_an_error_that_lists_the_stages():
    with pytest.raises(ValueError, match=r"no stage 'layer9'.*1: layer1"):
        small_model().freeze_backbone(until="layer9")


def test_norms_can_be_set_free_and_frozen_again():
    model = small_model()
    pixel_values, _ = images((64, 64))
    with torch.no_grad():
        frozen = model(pixel_values).logits
        model.unfreeze_norms()
        assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
        assert torch.allclose(model(pixel_values).logits, frozen, atol=1e-4)
        model.freeze_norms()
        assert torch.allclose(model(pixel_values).logits, frozen, atol=1e-4)


def test_norms_of_frozen_stages_do_not_train_and_the_file_says_so_too(tmp_path):
    model = small_model(backbone="resnet18")
    model.unfreeze_norms()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[4] for name in frozen if ".conv_encoder." in name} == {"conv1", "bn1", "layer1"}
    model.save_pretrained(tmp_path)
    again = DetrForObjectDetection.from_pretrained(tmp_path)
    assert {name for name, p in again.named_parameters() if not p.requires_grad} == frozen


def test_live_and_frozen_norms_have_the_same_state_dict():
    frozen, live = small_model(), small_model(freeze_backbone_norms=False)
    assert list(frozen.state_dict()) == list(live.state_dict())


def test_random_weights_with_anything_frozen_warn_and_name_the_fields():
    with pytest.warns(UserWarning, match=r"freeze_backbone_norms=False and freeze_backbone_until=None"):
        DetrForObjectDetection(small_config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DetrForObjectDetection(small_config(freeze_backbone_norms=False, freeze_backbone_until=None))


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(channels):
    model = small_model(num_channels=channels)
    pixel_values, pixel_mask = images((64, 64), (48, 64), channels=channels)
    assert model(pixel_values, pixel_mask).logits.shape == (2, 9, 6)


def test_only_the_last_map_is_computed_and_all_wanted_channels_are_told():
    encoder = build_timm_backbone("resnet18", out_indices=[2, 3, 4])
    assert encoder.intermediate_channel_sizes == [128, 256, 512]
    assert len(encoder.model(torch.zeros(1, 3, 64, 64))) == 1


def test_a_network_of_four_stages_takes_the_default():
    assert build_timm_backbone("convnext_atto", out_indices=[1, 2, 3, 4]).intermediate_channel_sizes == [
        40,
        80,
        160,
        320,
    ]


def test_output_stride_dilates():
    assert build_timm_backbone("resnet18", output_stride=16)(torch.zeros(1, 3, 64, 96))[-1].shape[-2:] == (4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5o"}, "resnet5o"),
        ({"name": "resnet18", "out_indices": [3, 9]}, r"stages 0 to 4"),
        ({"name": "resnet18", "timm_kwargs": {"no_such": 1}}, "no_such"),
    ],
)
def test_impossible_backbones_are_clear_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_timm_backbone(**arguments)
