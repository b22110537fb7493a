"""Law 3: interchangeable with the DETR inside transformers, in both directions, with equal outputs (1e-5)."""

import json
import warnings
from copy import deepcopy

import pytest
import torch
import transformers

from hf_detr import DetrConfig, DetrForObjectDetection, DetrModel
from tests.small_models import SIZES, images, small_model, targets, with_statistics

# name -> changes of the configuration; SIZES makes the transformer small
ARCHITECTURES = {
    "timm": {"backbone": "resnet18"},
    "dc5": {"backbone": "resnet18", "dilation": True},
    "learned positions": {"backbone": "resnet18", "position_embedding_type": "learned"},
    "gelu": {"backbone": "test_resnet", "activation_function": "gelu"},
    "AutoBackbone": {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 24, 32, 40],
            "embedding_size": 8,
            "layer_type": "basic",
            "out_features": ["stage4"],
        },
    },
}
SINGLE, PADDED = ((96, 64),), ((96, 64), (70, 128))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def changes(request):
    return dict(ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def ours_in_stock(changes, tmp_path_factory):
    """A model of ours, its saved folder, and that folder loaded by stock."""
    folder = tmp_path_factory.mktemp("ours")
    ours = small_model(**changes)
    ours.save_pretrained(folder)
    stock, info = transformers.DetrForObjectDetection.from_pretrained(folder, output_loading_info=True)
    return ours, folder, stock.eval(), info


def assert_same_outputs(ours, stock, sizes_hw):
    """Logits (relative to the largest) and boxes: in float64, where only the program counts, and in float32, where the
    rounding of convolutions depends on processor and layout."""
    pixel_values, pixel_mask = images(*sizes_hw)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        with torch.no_grad():
            mine, theirs = (model.to(dtype)(pixel_values.to(dtype), pixel_mask) for model in (ours, stock))
        assert theirs.logits.std(dim=1).max() > 1e-2
        assert (mine.logits - theirs.logits).abs().max() < tolerance * theirs.logits.abs().max()
        assert (mine.pred_boxes - theirs.pred_boxes).abs().max() < tolerance


def assert_no_key_is_left(info):
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("sizes_hw", [SINGLE, PADDED], ids=["single", "padded"])
def test_saved_here_loads_in_stock_and_gives_our_outputs(ours_in_stock, sizes_hw):
    ours, _, stock, info = ours_in_stock
    assert_no_key_is_left(info)
    assert_same_outputs(ours, stock, sizes_hw)


@pytest.mark.parametrize("sizes_hw", [SINGLE, PADDED], ids=["single", "padded"])
def test_saved_by_stock_loads_here_and_gives_its_outputs(changes, tmp_path, sizes_hw):
    torch.manual_seed(0)
    stock = transformers.DetrForObjectDetection(transformers.DetrConfig(**{**SIZES, **changes}))
    with_statistics(stock).eval().save_pretrained(tmp_path)
    ours, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert_no_key_is_left(info)
    assert not ours.training
    assert not ours.config.auxiliary_loss
    assert_same_outputs(ours, stock, sizes_hw)


def test_stock_reads_no_auxiliary_loss_and_ours_trains_with_the_loss_it_had(ours_in_stock):
    ours, folder, stock, _ = ours_in_stock
    assert not stock.config.auxiliary_loss
    again = DetrForObjectDetection.from_pretrained(folder)
    assert again.config.auxiliary_loss
    pixel_values, pixel_mask = images(*PADDED)
    losses = [model(pixel_values, pixel_mask, labels=targets(2, 3)) for model in (ours, again)]
    assert torch.allclose(losses[0].loss, losses[1].loss)
    assert losses[0].loss_dict.keys() == losses[1].loss_dict.keys() >= {"loss_ce_0", "loss_bbox", "class_error"}


def test_what_stock_saves_of_ours_loads_here_again(ours_in_stock, tmp_path):
    ours, _, stock, _ = ours_in_stock
    stock.save_pretrained(tmp_path)
    again, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert_no_key_is_left(info)
    assert again.config.auxiliary_loss  # the block passed through stock
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))


def test_names_in_the_file_are_the_names_in_memory_and_on_the_hub(ours_in_stock, tmp_path):
    from safetensors import safe_open

    ours, folder, stock, _ = ours_in_stock
    with safe_open(folder / "model.safetensors", "pt") as file:
        mine = set(file.keys())
    stock.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        theirs = set(file.keys())
    assert mine == theirs == set(ours.state_dict())


def test_the_bare_model_loads_from_a_detector_and_equals_stocks(ours_in_stock):
    _, folder, _, _ = ours_in_stock
    ours, info = DetrModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    stock = transformers.DetrModel.from_pretrained(folder).eval()
    pixel_values, pixel_mask = images(*PADDED)
    with torch.no_grad():
        mine, theirs = (model.double()(pixel_values.double(), pixel_mask) for model in (ours, stock))
    assert torch.allclose(mine.last_hidden_state, theirs.last_hidden_state, atol=1e-5)
    assert torch.allclose(mine.encoder_last_hidden_state, theirs.encoder_last_hidden_state, atol=1e-5)


def test_every_stock_output_has_stocks_name_place_and_value(ours_in_stock):
    ours, folder, _, _ = ours_in_stock
    stock = transformers.DetrForObjectDetection.from_pretrained(folder, attn_implementation="eager").eval()
    pixel_values, pixel_mask = images(*PADDED)
    arguments = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        # in float64: attention weights of random models depend on the order of float32 sums, and so on the processor
        ours, stock, pixel_values = deepcopy(ours).double(), stock.double(), pixel_values.double()
        mine, theirs = (model(pixel_values, pixel_mask, **arguments) for model in (ours, stock))
        as_tuple = ours(pixel_values, pixel_mask, **arguments, return_dict=False)
    assert list(mine.keys()) == list(theirs.keys())
    assert type(mine).__name__ == type(theirs).__name__
    for name in mine.keys():  # noqa: SIM118, a ModelOutput iterates over its values' names only by keys()
        pairs = (
            [(mine[name], theirs[name])]
            if isinstance(mine[name], torch.Tensor)
            else list(zip(mine[name], theirs[name], strict=True))
        )
        for a, b in pairs:
            assert a.shape == b.shape, name
            assert torch.allclose(a, b, atol=2e-4), name
    assert len(as_tuple) == len(mine.to_tuple())
    assert torch.equal(as_tuple[0], mine.logits)


def test_the_losses_equal_stocks_without_auxiliary_ones(ours_in_stock):
    ours, folder, stock, _ = ours_in_stock
    ours = DetrForObjectDetection.from_pretrained(folder, auxiliary_loss=False)
    pixel_values, pixel_mask = images(*PADDED)
    mine, theirs = (model(pixel_values, pixel_mask, labels=targets(2, 3)) for model in (ours, stock))
    assert torch.allclose(mine.loss, theirs.loss, rtol=1e-4)
    for name, value in theirs.loss_dict.items():
        assert torch.allclose(mine.loss_dict[name], value.float(), rtol=1e-4, atol=1e-5), name


def test_defect_1_is_still_there_stocks_auxiliary_loss_changes_its_logits(ours_in_stock):
    # when this fails, stock has been corrected and the table of differences has to change
    ours, folder, _, _ = ours_in_stock
    broken = transformers.DetrForObjectDetection.from_pretrained(folder, auxiliary_loss=True).eval()
    pixel_values, pixel_mask = images(*SINGLE)
    with torch.no_grad():
        logits, wrong = (model(pixel_values, pixel_mask).logits for model in (ours.float(), broken))
    assert not torch.allclose(logits, wrong, rtol=0, atol=1e-3)


def test_a_stock_file_with_auxiliary_loss_warns_that_its_forward_pass_was_another(tmp_path):
    transformers.DetrConfig(**SIZES, auxiliary_loss=True).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="written by stock transformers with auxiliary_loss=True"):
        DetrConfig.from_pretrained(tmp_path)


def test_the_saved_configuration_keeps_what_stock_does_not_know_in_one_block(tmp_path):
    small_model(freeze_backbone_until="layer2", freeze_backbone_norms=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auxiliary_loss"] is False
    assert written["hf_detr"] == {
        "auxiliary_loss": True,
        "freeze_backbone_norms": False,
        "freeze_backbone_until": "layer2",
        "timm_kwargs": None,
        "denoising_queries": 0,
        "denoising_box_noise": 0.4,
        "denoising_label_noise": 0.2,
        "query_groups": 1,
        "encoder_auxiliary_loss": False,
        "iou_aware_classification": False,
        "chunk_size_backbone": 0,
        "chunk_size_masks": 25,
        "mask_loss_resolution": "image",
        "mask_loss_points": 12544,
        "mask_loss_on_padding": False,
        "freeze_detector": False,
        "label_ids_to_fuse": None,
    }
    assert written["architectures"] == ["DetrForObjectDetection"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = DetrForObjectDetection.from_pretrained(tmp_path)
    assert not any(p.requires_grad for n, p in again.named_parameters() if ".layer2." in n)
    assert again.config.to_dict().keys() == DetrConfig.from_pretrained(tmp_path).to_dict().keys()


def test_a_hierarchical_transformer_survives_saving_and_loading(tmp_path):
    # its tables of relative positions are in no file
    ours = small_model(backbone="swin_tiny_patch4_window7_224")
    ours.save_pretrained(tmp_path)
    again = DetrForObjectDetection.from_pretrained(tmp_path)
    pixel_values, pixel_mask = images((96, 66), (70, 130))
    with torch.no_grad():
        assert torch.allclose(ours(pixel_values, pixel_mask).logits, again(pixel_values, pixel_mask).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_runs_and_stays_near(ours_in_stock, dtype):
    ours, folder, _, _ = ours_in_stock
    half = DetrForObjectDetection.from_pretrained(folder, dtype=dtype)
    assert half.dtype == dtype
    pixel_values, pixel_mask = images(*PADDED)
    with torch.no_grad():
        mine, reference = half(pixel_values, pixel_mask), ours(pixel_values, pixel_mask)
    assert mine.logits.dtype == dtype
    assert (mine.pred_boxes.float() - reference.pred_boxes).abs().max() < 0.1


def test_device_map_places_the_model(ours_in_stock):
    _, folder, _, _ = ours_in_stock
    ours = DetrForObjectDetection.from_pretrained(folder, device_map="cpu")
    assert ours(images(*SINGLE)[0]).logits.device.type == "cpu"
