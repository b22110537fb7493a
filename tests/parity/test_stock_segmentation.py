"""Law 3 for masks: interchangeable with the DetrForSegmentation inside transformers, and right where that is not."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from hf_detr import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from tests.small_models import SIZES, images, small_model, small_segmenter, targets, with_statistics

HEADS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
ARCHITECTURES = {
    "timm": {"backbone": "resnet18"},
    "dc5, learned positions, gelu": {
        "backbone": "resnet18",
        "dilation": True,
        "position_embedding_type": "learned",
        "activation_function": "gelu",
    },
    "AutoBackbone": {
        "use_timm_backbone": False,
        "backbone_config": {
            "model_type": "resnet",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 24, 32, 40],
            "embedding_size": 8,
            "layer_type": "basic",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
}
SINGLE, PADDED = ((96, 64),), ((96, 64), (70, 128))
SAME = ((96, 64), (96, 64))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def changes(request):
    return {**HEADS, **ARCHITECTURES[request.param]}


@pytest.fixture(scope="module")
def ours_in_stock(changes, tmp_path_factory):
    """A model of ours, its saved folder, and that folder loaded by stock."""
    folder = tmp_path_factory.mktemp("ours")
    ours = small_model(DetrForSegmentation, **changes)
    ours.save_pretrained(folder)
    stock, info = transformers.DetrForSegmentation.from_pretrained(folder, output_loading_info=True)
    return ours, folder, stock.eval(), info


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model on a plain small ResNet."""
    folder = tmp_path_factory.mktemp("plain")
    small_segmenter(backbone="resnet18", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).save_pretrained(
        folder
    )
    return folder


def stock_of(folder, **changes):
    return transformers.DetrForSegmentation.from_pretrained(folder, **changes).eval()


def ours_of(folder, **changes):
    return DetrForSegmentation.from_pretrained(folder, auxiliary_loss=False, **changes)


def assert_equal_outputs(ours, stock, sizes_hw):
    pixel_values, pixel_mask = images(*sizes_hw)
    for dtype in (torch.float64, torch.float32):
        with torch.no_grad():
            mine, theirs = (deepcopy(model).to(dtype)(pixel_values.to(dtype), pixel_mask) for model in (ours, stock))
        for name in ("logits", "pred_boxes", "pred_masks"):
            assert mine[name].shape == theirs[name].shape
            scale = theirs[name].abs().max()
            assert theirs[name].std(dim=1).max() > 1e-2
            assert ((mine[name] - theirs[name]).abs().max() / scale).item() < 1e-4, name


def assert_no_key_is_left(info):
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("sizes_hw", [SINGLE, PADDED], ids=["single", "padded"])
def test_saved_here_loads_in_stock_and_gives_our_outputs(ours_in_stock, sizes_hw):
    ours, _, stock, info = ours_in_stock
    assert_no_key_is_left(info)
    assert_equal_outputs(ours, stock, sizes_hw)


def test_saved_by_stock_loads_here_and_gives_its_outputs(changes, tmp_path):
    torch.manual_seed(0)
    stock = transformers.DetrForSegmentation(transformers.DetrConfig(**{**SIZES, **changes}))
    with_statistics(stock).eval().save_pretrained(tmp_path)
    ours, info = DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_no_key_is_left(info)
    assert_equal_outputs(ours, stock, PADDED)


def test_names_in_the_file_are_the_names_in_memory_and_on_the_hub(ours_in_stock, tmp_path):
    ours, folder, stock, _ = ours_in_stock
    stock.save_pretrained(tmp_path)
    mine, theirs = (set(safe_open(one / "model.safetensors", "pt").keys()) for one in (folder, tmp_path))
    assert mine == theirs == set(ours.state_dict())
    assert {name.split(".")[0] for name in mine} == {"detr", "bbox_attention", "mask_head"}
    again, info = DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_no_key_is_left(info)
    assert again.config.auxiliary_loss  # the block passed through stock


def test_every_stock_output_has_stocks_name_and_place(folder):
    pixel_values, pixel_mask = images(*PADDED)
    arguments = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        mine = DetrForSegmentation.from_pretrained(folder)(pixel_values, pixel_mask, **arguments)
        theirs = stock_of(folder, attn_implementation="eager")(pixel_values, pixel_mask, **arguments)
    assert list(mine.keys()) == list(theirs.keys())
    assert type(mine).__name__ == type(theirs).__name__
    assert len(mine.to_tuple()) == len(theirs.to_tuple())


def test_losses_and_gradients_equal_stocks_where_nothing_is_padded(folder):
    pixel_values, _ = images(*SAME)
    labels = [{**label, "boxes": label["boxes"].double()} for label in targets(2, 3, sizes_hw=SAME)]
    models = [model.double() for model in (ours_of(folder), stock_of(folder))]
    torch.set_default_dtype(torch.float64)  # of which stock's loss makes its class weights
    try:
        mine, theirs = (model(pixel_values.double(), labels=labels) for model in models)
    finally:
        torch.set_default_dtype(torch.float32)
    for outputs in (mine, theirs):
        outputs.loss.backward()
    assert torch.allclose(mine.loss, theirs.loss.double(), rtol=1e-5)
    for name, value in theirs.loss_dict.items():
        assert torch.allclose(mine.loss_dict[name].double(), value.double(), rtol=1e-4, atol=1e-6), name
    for layer in ("lay1", "lay5", "out_lay"):
        ours, stock = models[0].mask_head.get_submodule(layer), _stocks(models[1], layer)
        assert torch.allclose(ours.weight.grad, stock.weight.grad, rtol=1e-4, atol=1e-7), layer


def test_defect_1_is_still_there_stocks_auxiliary_loss_changes_its_masks(folder):
    # when this fails, stock has been corrected and the table of differences has to change
    pixels = images(*SINGLE)[0]
    with torch.no_grad():
        plain, broken = (stock_of(folder, auxiliary_loss=on)(pixels).pred_masks for on in (False, True))
        ours = DetrForSegmentation.from_pretrained(folder)(pixels).pred_masks
    assert (broken - plain).abs().max() > 1e-2
    assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()


def _stocks(model, layer):
    name = {"lay1": "conv1.conv", "lay5": "fpn_stages.2.refine.conv", "out_lay": "output_conv"}[layer]
    return model.mask_head.get_submodule(name)


def test_stock_counts_padding_in_the_mask_losses_and_ours_does_when_asked_to(folder):
    # when this fails, stock has been corrected and the table of differences has to change
    pixel_values, pixel_mask = images(*PADDED)
    unpadded = targets(2, 3, sizes_hw=PADDED)
    canvas = (96, 128)
    padded = [{**label, "masks": _padded(label["masks"], canvas)} for label in unpadded]  # as stock's processor
    with torch.no_grad():
        stock = stock_of(folder)(pixel_values, pixel_mask, labels=padded).loss_dict
        as_stock = ours_of(folder, mask_loss_on_padding=True)(pixel_values, pixel_mask, labels=unpadded).loss_dict
        ours = [ours_of(folder)(pixel_values, pixel_mask, labels=one).loss_dict for one in (unpadded, padded)]
    for name in ("loss_mask", "loss_dice"):
        assert as_stock[name].item() == pytest.approx(stock[name].item(), rel=1e-4), name
        assert ours[0][name].item() == ours[1][name].item(), name  # masks may be padded with their image
        assert abs(ours[0][name].item() / stock[name].item() - 1) > 0.02, name


def _padded(masks, canvas_hw):
    height, width = masks.shape[1:]
    return torch.nn.functional.pad(masks, (0, canvas_hw[1] - width, 0, canvas_hw[0] - height))


def test_stock_stretches_masks_over_labels_smaller_than_the_canvas_and_ours_does_not(folder):
    # canvases are larger than their largest image with pad_size, or with sides of a whole number of cells
    pixel_values, pixel_mask = images((96, 64), (70, 128))
    pixel_values, pixel_mask = pixel_values[:1], pixel_mask[:1]  # an image of 96 x 64 on a canvas of 96 x 128
    (label,) = targets(2, sizes_hw=((96, 64),))
    on_canvas = [{**label, "masks": _padded(label["masks"], (96, 128))}]
    with torch.no_grad():
        stock = [stock_of(folder)(pixel_values, pixel_mask, labels=one).loss_dict for one in ([label], on_canvas)]
        ours = [ours_of(folder)(pixel_values, pixel_mask, labels=one).loss_dict for one in ([label], on_canvas)]
    assert abs(stock[0]["loss_dice"] - stock[1]["loss_dice"]) > 1e-3
    assert ours[0]["loss_dice"] == ours[1]["loss_dice"]


def test_stock_computes_mask_losses_in_half_precision_under_autocast_and_ours_does_not(folder):
    pixel_values, _ = images(*SAME)
    labels = targets(2, 3, sizes_hw=SAME)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mine, theirs = (model(pixel_values, labels=labels).loss_dict for model in (ours_of(folder), stock_of(folder)))
    assert mine["loss_mask"].dtype == mine["loss_dice"].dtype == torch.float32
    assert theirs["loss_dice"].dtype == torch.bfloat16


def test_masks_of_0_and_255_are_masks_here_and_garbage_in_stock(folder):
    pixel_values, _ = images(*SAME)
    labels = targets(2, 3, sizes_hw=SAME)
    as_images = [{**label, "masks": label["masks"] * 255} for label in labels]
    with torch.no_grad():
        mine = [ours_of(folder)(pixel_values, labels=one).loss_dict["loss_dice"] for one in (labels, as_images)]
        stock = [stock_of(folder)(pixel_values, labels=one).loss_dict["loss_dice"] for one in (labels, as_images)]
    assert mine[0] == mine[1]
    assert abs(stock[0] - stock[1]) > 0.1


def test_a_detectors_checkpoint_loads_here_and_is_lost_in_stock(tmp_path):
    detector = small_model(backbone="resnet18", **HEADS)
    detector.save_pretrained(tmp_path)
    _, info = transformers.DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert any(key.startswith("detr.") for key in info["missing_keys"])
    ours, info = DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"bbox_attention", "mask_head"}
    assert torch.equal(ours(images(*SINGLE)[0]).logits, detector(images(*SINGLE)[0]).logits)


def test_stock_asks_for_the_maps_of_a_backbone_that_gives_one_and_ours_says_so(tmp_path):
    fields = {"use_timm_backbone": False, **SIZES, **HEADS}
    fields["backbone_config"] = {**ARCHITECTURES["AutoBackbone"]["backbone_config"], "out_features": ["stage4"]}
    with pytest.raises(IndexError):
        transformers.DetrForSegmentation(transformers.DetrConfig(**fields))(images(*SINGLE)[0])
    with pytest.raises(ValueError, match=r"takes 4 feature maps, the backbone gives 1.*out_features"):
        small_model(DetrForSegmentation, **fields)


def test_a_segmentation_checkpoint_is_no_detector_in_silence(folder):
    with pytest.raises(ValueError, match=r"DetrForSegmentation\.from_pretrained\(\.\.\.\)\.detr"):
        DetrForObjectDetection.from_pretrained(folder)


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_transformers_pipeline_gives_equal_results(folder, subtask):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 100, 3), dtype=np.uint8))
    results, size = [], {"shortest_edge": 64, "longest_edge": 96}
    for model, processor in (
        (DetrForSegmentation.from_pretrained(folder), DetrImageProcessor(size=size)),
        (stock_of(folder), transformers.DetrImageProcessor(size=size)),
    ):
        pipe = transformers.pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
        results.append(pipe(image, subtask=subtask, threshold=0.0, mask_threshold=0.5))
    assert results[0]
    assert len(results[0]) == len(results[1])
    for ours, stock in zip(*results, strict=True):
        assert ours["label"] == stock["label"]
        assert ours["score"] == pytest.approx(stock["score"], abs=1e-4) or ours["score"] is stock["score"] is None
        assert np.mean(np.array(ours["mask"]) != np.array(stock["mask"])) < 1e-3


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_post_processing_of_kept_masks_alone_is_that_of_all(folder, kind):
    model = DetrForSegmentation.from_pretrained(folder)
    pixel_values, pixel_mask = images(*PADDED)
    with torch.no_grad():
        whole = model(pixel_values, pixel_mask)
        threshold = whole.logits.softmax(-1)[..., :-1].amax(-1).quantile(0.8).item()
        kept = model(pixel_values, pixel_mask, mask_threshold=threshold)
    assert kept.pred_masks.shape[1] < whole.pred_masks.shape[1]
    post_process = getattr(DetrImageProcessor(), f"post_process_{kind}_segmentation")
    results = [post_process(outputs, threshold=threshold, target_sizes=list(PADDED)) for outputs in (whole, kept)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one["segmentation"], other["segmentation"])
        assert one["segments_info"] == other["segments_info"]
