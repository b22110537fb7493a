"""Law 1: how the logits are computed does not change them (float32, 1e-4)."""

from copy import deepcopy

import pytest
import torch

from hf_detr import DetrForObjectDetection
from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from tests.small_models import images, small_model, targets

SIZES = ((70, 96), (64, 50))


def logits_and_boxes(model, **inputs):
    with torch.no_grad():
        outputs = model(**inputs)
    return torch.cat((outputs.logits, outputs.pred_boxes), dim=-1)


def padded_batch():
    pixel_values, pixel_mask = images(*SIZES)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


def assert_same(ours, reference):
    assert torch.allclose(ours, reference, atol=1e-4, rtol=1e-4)
    assert reference.std(dim=1).max() > 1e-2  # queries that all say the same would prove nothing


def test_auxiliary_loss_never_changes_the_logits():
    with_it, without = small_model(auxiliary_loss=True), small_model(auxiliary_loss=False)
    without.load_state_dict(with_it.state_dict())
    assert_same(logits_and_boxes(with_it, **padded_batch()), logits_and_boxes(without, **padded_batch()))


def test_gradient_checkpointing_changes_neither_loss_nor_gradients():
    plain = small_model(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    checkpointed = small_model(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.is_gradient_checkpointing
    losses = []
    for model in (plain, checkpointed):
        outputs = model(**padded_batch(), labels=targets(3, 2))
        outputs.loss.backward()
        losses.append(outputs)
    assert_same(losses[1].logits, losses[0].logits)
    assert torch.allclose(losses[1].loss, losses[0].loss, rtol=1e-5)
    for (name, ours), (_, reference) in zip(checkpointed.named_parameters(), plain.named_parameters(), strict=True):
        if reference.grad is not None:
            assert torch.allclose(ours.grad, reference.grad, atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("padded", [False, True])
def test_attention_implementation_never_changes_the_logits(padded):
    model = small_model()
    inputs = padded_batch() if padded else {"pixel_values": images((64, 96), (64, 96))[0]}
    results = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results.append(logits_and_boxes(model, **inputs))
    assert_same(*results)


def test_memory_format_never_changes_the_logits():
    model = small_model()
    inputs = padded_batch()
    reference = logits_and_boxes(model, **inputs)
    model.to(memory_format=torch.channels_last)
    inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    assert_same(logits_and_boxes(model, **inputs), reference)


@pytest.mark.parametrize("backbone", ["test_resnet", "regnety_002", "tf_efficientnet_lite0"])
def test_folding_and_unfolding_never_change_the_logits(backbone, tmp_path):
    model = small_model(backbone=backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = logits_and_boxes(model, **padded_batch())
    assert model.fold_norms() > 10
    assert not any(isinstance(part, FrozenBatchNorm2d) for part in model.modules())
    assert_same(logits_and_boxes(model, **padded_batch()), reference)
    assert_same(logits_and_boxes(deepcopy(model), **padded_batch()), reference)
    model.save_pretrained(tmp_path)
    assert_same(logits_and_boxes(DetrForObjectDetection.from_pretrained(tmp_path), **padded_batch()), reference)
    assert model.unfold_norms() > 10
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_folded_model_follows_to_another_dtype_and_back():
    model = small_model()
    model.fold_norms()
    model.double().unfold_norms()
    assert all(t.dtype == torch.float64 for t in model.state_dict().values() if t.is_floating_point())


def test_a_folded_model_does_not_train():
    model = small_model()
    model.fold_norms()
    with pytest.raises(RuntimeError, match=r"unfold_norms\(\) before training"):
        model.train()(padded_batch()["pixel_values"])


def test_what_folding_would_lose_stays_unfolded():
    model = small_model()
    network = model.model.backbone.conv_encoder.model
    convolutions = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    calls = []
    convolutions[0].register_forward_hook(lambda *_: calls.append(1))
    reference = logits_and_boxes(model, **padded_batch())
    folded = model.fold_norms()
    assert folded == len(convolutions) - 1
    assert_same(logits_and_boxes(model, **padded_batch()), reference)
    assert len(calls) == 2


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_logits_do_not_depend_on_how_many_images_pass_the_backbone_at_a_time(chunk_size):
    model = small_model()
    pixel_values, pixel_mask = images((64, 64), (48, 96), (96, 40))
    reference = logits_and_boxes(model, pixel_values=pixel_values, pixel_mask=pixel_mask)
    seen = []
    model.model.backbone.conv_encoder.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.config.chunk_size_backbone = chunk_size
    assert_same(logits_and_boxes(model, pixel_values=pixel_values, pixel_mask=pixel_mask), reference)
    assert seen == [1, 1, 1] if chunk_size == 1 else [2, 1]
