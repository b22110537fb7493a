"""Law 1: how the logits are computed does not change them (float32, 1e-4)."""

import pytest
import torch

from hf_detr.nn.folding import FoldedConv2d, FoldedConv2dSame, unfold_norms
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
def test_folding_never_changes_the_logits(backbone):
    model = small_model(backbone=backbone)
    folded = [part for part in model.modules() if isinstance(part, (FoldedConv2d, FoldedConv2dSame))]
    assert len(folded) > 10
    results = [logits_and_boxes(model, **padded_batch())]
    unfold_norms(model)
    assert not any(isinstance(part, FoldedConv2d) for part in model.modules())
    results.append(logits_and_boxes(model, **padded_batch()))
    assert_same(*results)


def test_folded_training_gives_the_gradients_of_unfolded_training():
    # in float64: rounding alone moves activations across the corner of a ReLU
    arguments = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    folded, unfolded = small_model(**arguments).double().train(), small_model(**arguments).double().train()
    unfold_norms(unfolded)
    inputs = padded_batch()
    for model in (folded, unfolded):
        model(inputs["pixel_values"].double(), inputs["pixel_mask"], labels=targets(3, 2)).loss.backward()
    for (name, ours), (_, reference) in zip(folded.named_parameters(), unfolded.named_parameters(), strict=True):
        if reference.grad is not None:
            assert torch.allclose(ours.grad, reference.grad, atol=1e-6, rtol=1e-5), name
