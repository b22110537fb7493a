"""Law 12: NaN or infinity in pixels or weights never becomes a finite detection or a finite loss, in any mode.

Infinity is put where arithmetic keeps it. Behind a ReLU minus infinity is 0, as in any network, and is no case here.
"""

from types import SimpleNamespace

import pytest
import torch

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from tests.small_models import images, small_model, small_segmenter, targets

NAN, INF = float("nan"), float("inf")
EXTRA = {"denoising_queries": 2, "query_groups": 2, "encoder_auxiliary_loss": True, "iou_aware_classification": True}
NORM_BUFFERS = ("weight", "bias", "running_mean", "running_var")
WEIGHTS = {
    "stem": "model.backbone.conv_encoder.model.conv1.0.weight",
    "layer4": "model.backbone.conv_encoder.model.layer4.0.conv2.weight",
    "projection": "model.input_projection.weight",
    "encoder attention": "model.encoder.layers.0.self_attn.q_proj.weight",
    "decoder attention": "model.decoder.layers.0.self_attn.v_proj.bias",
    "cross-attention": "model.decoder.layers.1.encoder_attn.k_proj.weight",
    "feed-forward": "model.decoder.layers.0.fc1.weight",
    "queries": "model.query_position_embeddings.weight",
    "class head": "class_labels_classifier.weight",
    "box head": "bbox_predictor.layers.0.weight",
}
PLACES = ["pixels", *WEIGHTS, *NORM_BUFFERS]
# a weight that a ReLU follows gives infinity for one sign of its input only
CASES = [(NAN, place) for place in PLACES] + [
    (INF, place)
    for place in ("pixels", "stem", "layer4", "projection", "encoder attention", "decoder attention", "class head")
]


def spoiled(bad: float, place: str, **changes) -> tuple[DetrForObjectDetection, torch.Tensor]:
    """A model and the pixels of two images, with one bad number: in pixels it is in every image."""
    model, pixels = small_model(**changes), images((64, 64), (64, 64))[0]
    norms = [part for part in model.modules() if isinstance(part, FrozenBatchNorm2d)]
    if place == "pixels":
        pixels[:, 1, 20, 30] = bad
    else:
        tensor = getattr(norms[3], place) if place in NORM_BUFFERS else model.get_parameter(WEIGHTS[place])
        with torch.no_grad():
            if place == "queries":
                tensor[:, 3] = bad
            else:
                tensor.view(-1)[tensor.numel() // 2] = bad
    return model, pixels


@pytest.mark.parametrize("mode", ["no_grad", "gradients", "folded"])
@pytest.mark.parametrize(("bad", "place"), CASES)
def test_at_inference_no_detection_is_finite(bad, place, mode):
    model, pixels = spoiled(bad, place)
    if mode == "folded":
        assert model.fold_norms()
    with torch.set_grad_enabled(mode == "gradients"):
        outputs = model(pixels)
    finite = outputs.logits.isfinite().all(-1) & outputs.pred_boxes.isfinite().all(-1)
    assert not finite.any()
    plain = SimpleNamespace(logits=outputs.logits.detach(), pred_boxes=outputs.pred_boxes.detach())
    for result in DetrImageProcessor().post_process_object_detection(plain, threshold=0.0):
        assert not (result["scores"].isfinite() & result["boxes"].isfinite().all(-1)).any()


@pytest.mark.parametrize(
    ("training", "parts"), [(True, {}), (True, EXTRA), (False, {})], ids=["train", "training-only parts", "eval"]
)
@pytest.mark.parametrize(("bad", "place"), CASES)
def test_no_loss_is_finite(bad, place, training, parts):
    model, pixels = spoiled(bad, place, **parts)
    with pytest.raises(ValueError, match="predictions are not finite"):
        model.train(training)(pixels, labels=targets(2, 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
def test_one_bad_image_spoils_no_other(memory_format):
    """And its NaN arrives behind norms, ReLU and pooling in either memory format, at a batch of common size."""
    model = small_model()
    pixels = images((64, 64), (64, 64))[0]
    wanted = model(pixels).logits[0]
    pixels[1, 0, 63, 63] = NAN
    with torch.no_grad():
        logits = model(pixels.contiguous(memory_format=memory_format)).logits
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[0], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["logits", "boxes"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_post_processing_finds_nothing_where_a_prediction_is_not_finite(bad, where, threshold):
    logits, boxes = torch.zeros(1, 3, 6), torch.full((1, 3, 4), 0.5)
    logits[..., 2] = 9.0
    {"logits": logits, "boxes": boxes}[where][0, 1, 0] = bad
    (result,) = DetrImageProcessor().post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=threshold
    )
    finite = result["scores"].isfinite() & result["boxes"].isfinite().all(-1)
    assert finite.sum() == 2  # the queries beside it


MASK_WEIGHTS = ("bbox_attention.q_linear.weight", "mask_head.lay1.weight", "mask_head.adapter3.weight",
                "mask_head.gn5.weight", "mask_head.out_lay.bias")  # fmt: skip


@pytest.mark.parametrize("resolution", ["image", "mask", "points"])
@pytest.mark.parametrize("counts", [(2, 3), (0, 0)])
@pytest.mark.parametrize("place", MASK_WEIGHTS)
def test_no_loss_is_finite_where_a_weight_of_the_mask_head_is_not(place, counts, resolution):
    sizes_hw = ((64, 64), (64, 64))
    model = small_segmenter(mask_loss_resolution=resolution).train()
    with torch.no_grad():
        model.get_parameter(place).view(-1)[0] = NAN
    outputs = model(images(*sizes_hw)[0], labels=targets(*counts, sizes_hw=sizes_hw))
    assert not outputs.loss.isfinite()
    model.eval()
    with torch.no_grad():
        assert not model(images(*sizes_hw)[0]).pred_masks.isfinite().any()


@pytest.mark.parametrize("bad", [INF, -INF])
@pytest.mark.parametrize("on_object", [True, False])
def test_an_infinite_mask_gives_no_finite_loss_where_it_happens_to_be_right(bad, on_object):
    model = small_segmenter().train()
    with torch.no_grad():
        model.mask_head.out_lay.bias.fill_(bad)
    (labels,) = targets(1, sizes_hw=((64, 64),))
    labels["masks"].fill_(on_object)
    assert not model(images((64, 64))[0], labels=[labels]).loss.isfinite()
