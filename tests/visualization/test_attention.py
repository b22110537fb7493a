"""What is recorded of the inside of a model, and the page that shows it."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr.visualization import draw_queries, explanation_page, record_attention
from hf_detr.visualization.attention import (
    Recording,
    attention_from_point,
    attention_on_image,
    deciding_layers,
)
from hf_detr.visualization.query_statistics import box_kinds

from ..small_models import images, small_model, small_segmenter

L, Q, C = 3, 4, 2


def recording(labels, boxes=None, encoder=True) -> Recording:
    """Layers x queries of classes that are certain, C for none; 2 x 3 cells."""
    logits = 20.0 * torch.nn.functional.one_hot(torch.tensor(labels), C + 1)
    layers, queries = logits.shape[:2]
    if boxes is None:
        boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(layers, queries, 4)
    generator = torch.Generator().manual_seed(0)
    cross = torch.rand(layers, queries, 2, 3, generator=generator)
    return Recording(logits, boxes, cross, torch.rand(2, 3, 2, 3, generator=generator) if encoder else None)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("auxiliary_loss", [False, True])
def test_recording_changes_no_output_and_leaves_no_trace(implementation, auxiliary_loss):
    model = small_model(auxiliary_loss=auxiliary_loss)
    model.set_attn_implementation(implementation)
    model.train()
    pixel_values, _ = images((64, 96))
    recorded = record_attention(model, pixel_values)
    assert model.training
    assert model.config._attn_implementation == implementation
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        outputs = model.eval()(pixel_values)
    assert outputs.cross_attentions is None
    assert recorded.logits.shape == (3, 9, 6)
    assert (recorded.logits[-1] - outputs.logits[0]).abs().max() < 1e-4
    assert (recorded.boxes_cxcywh[-1] - outputs.pred_boxes[0]).abs().max() < 1e-4


def test_of_a_model_with_masks_its_detector_is_recorded():
    model, (pixel_values, _) = small_segmenter(), images((64, 96))
    recorded = record_attention(model, pixel_values)
    with torch.no_grad():
        outputs = model(pixel_values)
    assert (recorded.logits[-1] - outputs.logits[0]).abs().max() < 1e-4
    assert recorded.cross_attention.shape == (3, 9, 2, 3)


def test_every_layer_is_what_a_model_cut_after_it_would_answer():
    model = small_model()
    pixel_values, _ = images((64, 96))
    recorded = record_attention(model, pixel_values)
    for layer in (2, 1):
        del model.model.decoder.layers[layer]
        with torch.no_grad():
            outputs = model(pixel_values)
        assert (recorded.logits[layer - 1] - outputs.logits[0]).abs().max() < 1e-4
        assert (recorded.boxes_cxcywh[layer - 1] - outputs.pred_boxes[0]).abs().max() < 1e-4


def test_attention_lies_in_the_cells_of_the_feature_map_and_adds_up_to_one():
    model = small_model()
    recorded = record_attention(model, images((64, 160))[0])
    assert recorded.cross_attention.shape == (3, 9, 2, 5)
    assert recorded.encoder_attention.shape == (2, 5, 2, 5)
    assert torch.allclose(recorded.cross_attention.sum((-2, -1)), torch.ones(3, 9), atol=1e-5)
    assert torch.allclose(recorded.encoder_attention.sum((-2, -1)), torch.ones(2, 5), atol=1e-5)


def test_cells_on_padding_are_left_out():
    model = small_model()
    pixel_values, pixel_mask = images((64, 96), (128, 128))
    recorded = record_attention(model, pixel_values[:1], pixel_mask[:1])
    assert recorded.cross_attention.shape == (3, 9, 2, 3)
    assert recorded.encoder_attention.shape == (2, 3, 2, 3)
    # what was left out was nothing
    assert torch.allclose(recorded.cross_attention.sum((-2, -1)), torch.ones(3, 9), atol=1e-5)


def test_a_batch_of_several_images_is_refused():
    with pytest.raises(ValueError, match="expected one image"):
        record_attention(small_model(), images((64, 64), (64, 64))[0])


def test_the_layer_that_decided_is_the_first_from_which_all_agree_with_the_last():
    recorded = recording([[0, 0, 0, C], [0, 1, 1, C], [1, 0, 1, C], [1, 1, 1, C]])
    assert deciding_layers(recorded).label.tolist() == [3, 4, 2, 1]
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(4, 4, 1)
    boxes[:3, 0, 2] = 0.24  # IoU 0.6 with the last
    boxes[1, 1, 0] = 0.1  # elsewhere for one layer
    boxes[:, 2, 2:] = 0  # without area even in the end
    decisions = deciding_layers(recording([[0] * 4] * 4, boxes))
    assert decisions.box_50.tolist() == [1, 3, 4, 1]
    assert decisions.box_75.tolist() == [4, 3, 4, 1]


def test_attention_on_the_image_is_greatest_where_its_cell_is():
    attention = torch.zeros(2, 3)
    attention[1, 2] = 0.2
    pixels = attention_on_image(attention, (90, 60))
    assert pixels.shape == (60, 90)
    assert pixels.max() == 1
    assert pixels.min() == 0
    assert pixels[45, 75] > 0.95
    assert pixels[15, 15] < 0.05
    assert attention_on_image(torch.ones(2, 3), (9, 6)).unique().tolist() == pytest.approx([1])
    assert not attention_on_image(torch.zeros(2, 3), (9, 6)).any()
    assert not attention_on_image(torch.full((2, 3), torch.nan), (9, 6)).any()


def test_a_point_looks_from_the_cell_it_lies_in():
    recorded = recording([[0]])
    assert torch.equal(attention_from_point(recorded, 0.99, 0.1), recorded.encoder_attention[0, 2])
    assert torch.equal(attention_from_point(recorded, 1, 1), recorded.encoder_attention[1, 2])
    with pytest.raises(ValueError, match=r"\(1.1, 0\) is not in the image"):
        attention_from_point(recorded, 1.1, 0)
    with pytest.raises(ValueError, match="no encoder layer"):
        attention_from_point(recording([[0]], encoder=False), 0, 0)


def content_of(page: str) -> dict:
    [content] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(content)


def test_the_page_has_every_layer_of_every_detection_and_needs_nothing_else():
    image = Image.new("RGB", (60, 40), "gray")
    recorded = recording([[0, 0, C, 1], [1, 0, C, 1]])
    page = explanation_page(recorded, image, {0: "</script><b>", 1: "cat"}, title="<i>&", threshold=0.5)
    content = content_of(page)
    assert len(content["detections"]) == 3
    assert page.count('class="box"') == 3
    assert all(len(one["steps"]) == content["layers"] == 2 for one in content["detections"])
    [changed] = [one for one in content["detections"] if one["query"] == 0]
    assert [step["answer"] for step in changed["steps"]] == ["</script><b> 1.00", "cat 1.00"]
    assert len(content["points"]) == 3
    assert all(address.startswith("data:image/") for address in re.findall(r' src="([^"]*)"', page))
    assert not re.search(r"https?://|url\(|<b>|<i>", page)
    assert page.count("<script") == 2  # what is shown, and what shows it
    assert "default-src 'none'" in page


def test_an_image_without_detections_has_a_page_with_points_for_the_encoder():
    page = explanation_page(recording([[C, C]]), np.zeros((40, 60, 3), np.uint8))
    assert content_of(page)["detections"] == []
    assert len(content_of(page)["points"]) == 4
    assert "Lower the threshold" in page
    assert 'class="point"' not in explanation_page(recording([[C]], encoder=False), Image.new("RGB", (60, 40)))


def test_each_query_has_a_panel_of_its_boxes_by_size():
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.9, 0.2], [0.5, 0.5, 0.2, 0.9]])
    assert box_kinds(boxes).tolist() == [0, 1, 2]
    one, two = (draw_queries(boxes[:, None].expand(-1, count, -1)) for count in (1, 2))
    assert two.width > 1.5 * one.width
    few = draw_queries(boxes[:, None].expand(-1, 30, -1), torch.rand(3, 30), most=2)
    assert few.size == two.size
    with pytest.raises(ValueError, match="at least one"):
        draw_queries(torch.zeros(0, 3, 4))
