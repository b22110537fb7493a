"""The second stage of training, a mask head on a detector; and the masks' loss, at any resolution."""

import json

import pytest
import torch
import transformers

from hf_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation, tiny_checkpoint
from hf_detr.checkpoints.stock_check import check_in_stock
from tests.small_models import images, small_config, small_model, small_segmenter, targets

HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
SIZES = ((64, 64), (64, 64))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A saved detector with training-only parts, of which files hold none."""
    folder = tmp_path_factory.mktemp("detector")
    small_model(denoising_queries=2, **HEADS).save_pretrained(folder)
    return folder


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_from_detector_keeps_the_detector_and_trains_the_mask_head_alone(detector):
    model = DetrForSegmentation.from_detector(detector)
    assert not model.training
    plain = DetrForObjectDetection.from_pretrained(detector)
    pixels = images((64, 96))[0]
    assert torch.equal(model(pixels).logits, plain(pixels).logits)
    assert {name.split(".")[0] for name in trained_names(model)} == {"bbox_attention", "mask_head"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model.train()(images(*SIZES)[0], labels=targets(2, 3, sizes_hw=SIZES)).loss.backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("detr."), name


def test_a_frozen_detectors_dropout_follows_train_as_in_the_original(detector):
    model = DetrForSegmentation.from_detector(detector, attention_dropout=0.3).train()
    pixels = images((64, 96))[0]
    assert not torch.equal(model(pixels).logits, model(pixels).logits)
    assert torch.equal(model.eval()(pixels).logits, model(pixels).logits)


def test_a_frozen_detectors_live_norms_are_fixed(tmp_path):
    small_model(freeze_backbone_norms=False, **HEADS).save_pretrained(tmp_path)
    model = DetrForSegmentation.from_detector(tmp_path)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())


def test_what_is_frozen_stays_frozen_in_the_file_and_can_be_freed(detector, tmp_path):
    model = DetrForSegmentation.from_detector(detector)
    model.save_pretrained(tmp_path)
    again = DetrForSegmentation.from_pretrained(tmp_path)
    assert trained_names(again) == trained_names(model)
    again.set_classes({0: "one", 1: "two"})
    assert trained_names(again) == trained_names(model)
    again.unfreeze_detector()
    together = DetrForSegmentation.from_detector(detector, freeze_detector=False)
    assert trained_names(again) == trained_names(together) > trained_names(model)
    assert not any(".conv1.0." in name for name in trained_names(together))  # the stem, as in any detector


def test_a_frozen_detector_is_given_no_class_that_it_does_not_know(tmp_path):
    small_model(id2label={0: "cat", 1: "dog"}, num_labels=2, **HEADS).save_pretrained(tmp_path)
    assert DetrForSegmentation.from_detector(tmp_path, id2label={0: "dog"}).config.num_labels == 1
    with pytest.raises(ValueError, match=r"classes \['bird'\].*freeze_detector=False"):
        DetrForSegmentation.from_detector(tmp_path, id2label={0: "dog", 1: "bird"})
    together = DetrForSegmentation.from_detector(tmp_path, id2label={0: "dog", 1: "bird"}, freeze_detector=False)
    assert together.config.num_labels == 2


def test_the_shipped_detector_starts_masks():
    model = DetrForSegmentation.from_detector(tiny_checkpoint())
    with torch.no_grad():
        assert model(images((96, 96))[0], mask_top_k=5).pred_masks.shape == (1, 5, 24, 24)


def test_from_a_detector_of_stock(tmp_path):
    config = transformers.DetrConfig(**{**small_config(**HEADS).to_dict(), "hf_detr": {}})
    stock = transformers.DetrForObjectDetection(config).eval()
    stock.save_pretrained(tmp_path)
    model = DetrForSegmentation.from_detector(tmp_path)
    pixels = images((64, 96))[0]
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, stock(pixels).logits, atol=1e-4)


def test_other_classes_keep_the_mask_head_and_the_stuff(tmp_path):
    names = {0: "cat", 1: "grass", 2: "sky", 3: "dog", 4: "sea"}
    model = small_segmenter(id2label=names, num_labels=5, label_ids_to_fuse=[1, 2, 4])
    model.save_pretrained(tmp_path)
    again = DetrForSegmentation.from_pretrained(tmp_path, id2label={0: "sky", 1: "dog", 2: "grass"})
    assert again.config.label_ids_to_fuse == [0, 2]
    assert json.loads((tmp_path / "config.json").read_text())["hf_detr"]["label_ids_to_fuse"] == [1, 2, 4]
    assert torch.equal(again.mask_head.lay1.weight, model.mask_head.lay1.weight)
    outputs = again(images((64, 64))[0])
    assert outputs.logits.shape == (1, 9, 4)


def test_fields_that_are_impossible_are_clear_errors():
    for field, value in (
        ("label_ids_to_fuse", [5]),
        ("mask_loss_resolution", "pixel"),
        ("mask_loss_points", 0),
        ("chunk_size_masks", -1),
        ("freeze_detector", 1),
    ):
        with pytest.raises(ValueError, match=field):
            small_config(**{field: value})
    with pytest.raises(ValueError, match=r"d_model=32 with 4 heads.*256 with 8 heads is the paper's"):
        DetrForSegmentation(small_config())


@pytest.mark.parametrize("backbone", ["convnext_atto", "regnety_002", "test_efficientnet"])
def test_any_backbone_with_four_maps_trains_and_runs_in_stock(backbone):
    four_stages = {"backbone_kwargs": {"out_indices": [0, 1, 2, 3]}} if backbone == "convnext_atto" else {}
    model = small_segmenter(backbone=backbone, **four_stages)
    sizes_hw = ((96, 70), (64, 96))  # sides that are no multiple of a cell
    pixel_values, pixel_mask = images(*sizes_hw)
    outputs = model.train()(pixel_values, pixel_mask, labels=targets(2, 3, sizes_hw=sizes_hw))
    outputs.loss.backward()
    assert model.mask_head.adapter3.weight.grad.abs().sum() > 0
    assert model.eval()(pixel_values, pixel_mask).pred_masks.shape == (2, 9, 24, 24)
    # stock drops the activation inside the norms of the others
    assert check_in_stock(model).outcome == ("equal" if backbone == "convnext_atto" else "differs")


def test_training_only_parts_train_and_stay_out_of_the_file(tmp_path):
    model = small_segmenter(denoising_queries=2, query_groups=2, encoder_auxiliary_loss=True).train()
    outputs = model(images(*SIZES)[0], labels=targets(2, 3, sizes_hw=SIZES))
    assert {"loss_groups", "loss_denoising", "loss_encoder", "loss_mask"} <= set(outputs.loss_dict)
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.training_only.parameters())
    model.save_pretrained(tmp_path)
    _, info = transformers.DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_loss_at_the_masks_resolution_and_at_points_estimates_that_of_the_image():
    sizes_hw = ((256, 192), (192, 256))
    pixel_values, pixel_mask = images(*sizes_hw)
    labels = targets(2, 3, sizes_hw=sizes_hw)
    losses = {}
    for resolution in ("image", "mask", "points"):
        model = small_segmenter(mask_loss_resolution=resolution, mask_loss_points=20_000)
        with torch.no_grad():
            losses[resolution] = model(pixel_values, pixel_mask, labels=labels).loss_dict
    for name in ("loss_mask", "loss_dice"):
        of_image = losses["image"][name].item()
        assert losses["points"][name].item() == pytest.approx(of_image, rel=0.05)
        assert losses["mask"][name].item() == pytest.approx(of_image, rel=0.25)  # not smoothed by resizing


def test_a_mask_loss_is_the_same_alone_and_beside_a_larger_image():
    # with the same predictions: padding counts neither in sums nor in means
    from hf_detr.loss import MaskCriterion, pack_targets

    torch.manual_seed(0)
    logits = torch.randn(2, 24, 16)  # of a canvas of 96 x 64
    (label,) = targets(2, sizes_hw=((96, 64),))
    alone = pack_targets([label], 1, torch.device("cpu"), (96, 64))
    wide = torch.cat((logits, logits[..., -1:].expand(-1, -1, 16)), dim=-1)  # what padding holds
    beside = pack_targets([label, *targets(0, sizes_hw=((96, 128),))], 2, torch.device("cpu"), (96, 128))
    mask = torch.ones(2, 96, 128, dtype=torch.int64)
    mask[0, :, 64:] = 0
    target = torch.tensor([0, 1])
    _, first = MaskCriterion()(logits, alone, target, (96, 64), None, 2)
    for pixel_mask in (mask, None):
        _, second = MaskCriterion()(wide, beside, target, (96, 128), pixel_mask, 2)
        for name in first:
            assert second[name].item() == pytest.approx(first[name].item(), rel=1e-5), name
    _, counted = MaskCriterion(on_padding=True)(wide, beside, target, (96, 128), mask, 2)
    assert counted["loss_mask"].item() != pytest.approx(first["loss_mask"].item(), rel=1e-2)


def test_focal_and_dice_are_their_formulas():
    from hf_detr.loss import MaskCriterion, pack_targets

    torch.manual_seed(0)
    logits = torch.randn(2, 16, 16, dtype=torch.float64)
    (label,) = targets(2, sizes_hw=((16, 16),))
    packed = pack_targets([label], 1, torch.device("cpu"), (16, 16))
    _, parts = MaskCriterion()(logits, packed, torch.tensor([1, 0]), (16, 16), None, 2)
    wanted = label["masks"].flip(0).double()
    p = logits.sigmoid()
    p_true = torch.where(wanted > 0, p, 1 - p)
    focal = torch.where(wanted > 0, 0.25, 0.75) * (1 - p_true) ** 2 * -p_true.log()
    dice = 1 - (2 * (p * wanted).sum((1, 2)) + 1) / (p.sum((1, 2)) + wanted.sum((1, 2)) + 1)
    assert parts["loss_mask"].item() == pytest.approx(focal.mean((1, 2)).sum().item() / 2, rel=1e-9)
    assert parts["loss_dice"].item() == pytest.approx(dice.sum().item() / 2, rel=1e-9)


def test_fresh_mask_heads_start_as_published():
    config = DetrConfig(backbone="test_resnet", freeze_backbone_norms=False, freeze_backbone_until=None)
    torch.manual_seed(0)
    model = DetrForSegmentation(config)
    bound = (3 / (264 * 9)) ** 0.5  # Kaiming with a = 1
    assert bound * 0.95 < model.mask_head.lay1.weight.abs().max() <= bound
    assert model.mask_head.lay1.bias.abs().max() == 0
    bound = (6 / 512) ** 0.5  # Xavier
    assert bound * 0.95 < model.bbox_attention.q_linear.weight.abs().max() <= bound
    assert model.bbox_attention.k_linear.bias.abs().max() == 0
