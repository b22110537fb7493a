"""Law 1: how the logits are computed does not change them (float32, 1e-4)."""

from copy import deepcopy

import pytest
import torch

from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from tests.small_models import MODELS, images, predictions, small_model, small_segmenter, targets

SIZES = ((70, 96), (64, 50))


def all_predictions(model, **inputs):
    with torch.no_grad():
        outputs = model(**inputs)
    # queries that all say the same would prove nothing
    assert outputs.logits.std(dim=1).max() > 1e-2
    if "pred_masks" in outputs:
        assert outputs.pred_masks.std(dim=1).max() > 1e-2
    return predictions(outputs)


def padded_batch():
    pixel_values, pixel_mask = images(*SIZES)
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


def assert_same(ours, reference):
    assert torch.allclose(ours, reference, atol=1e-4, rtol=1e-4)


@MODELS
def test_auxiliary_loss_never_changes_the_logits(make):
    with_it, without = make(auxiliary_loss=True), make(auxiliary_loss=False)
    without.load_state_dict(with_it.state_dict())
    assert_same(all_predictions(with_it, **padded_batch()), all_predictions(without, **padded_batch()))


@MODELS
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(make):
    plain = make(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    checkpointed = make(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    checkpointed.gradient_checkpointing_enable()
    assert checkpointed.is_gradient_checkpointing
    losses = []
    for model in (plain, checkpointed):
        outputs = model(**padded_batch(), labels=targets(3, 2, sizes_hw=SIZES))
        outputs.loss.backward()
        losses.append(outputs)
    assert_same(losses[1].logits, losses[0].logits)
    assert torch.allclose(losses[1].loss, losses[0].loss, rtol=1e-5)
    for (name, ours), (_, reference) in zip(checkpointed.named_parameters(), plain.named_parameters(), strict=True):
        if reference.grad is not None:
            assert torch.allclose(ours.grad, reference.grad, atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("padded", [False, True])
@MODELS
def test_attention_implementation_never_changes_the_logits(make, padded):
    model = make()
    inputs = padded_batch() if padded else {"pixel_values": images((64, 96), (64, 96))[0]}
    results = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results.append(all_predictions(model, **inputs))
    assert_same(*results)


@MODELS
def test_memory_format_never_changes_the_logits(make):
    model = make()
    inputs = padded_batch()
    reference = all_predictions(model, **inputs)
    model.to(memory_format=torch.channels_last)
    inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    assert_same(all_predictions(model, **inputs), reference)


@pytest.mark.parametrize(
    ("backbone", "make"),
    [
        ("test_resnet", small_model),
        ("regnety_002", small_model),
        ("tf_efficientnet_lite0", small_model),
        ("test_resnet", small_segmenter),
    ],
)
def test_folding_and_unfolding_never_change_the_logits(backbone, make, tmp_path):
    model = make(backbone=backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = all_predictions(model, **padded_batch())
    assert model.fold_norms() > 10
    assert not any(isinstance(part, FrozenBatchNorm2d) for part in model.modules())
    assert_same(all_predictions(model, **padded_batch()), reference)
    assert_same(all_predictions(deepcopy(model), **padded_batch()), reference)
    model.save_pretrained(tmp_path)
    assert_same(all_predictions(type(model).from_pretrained(tmp_path), **padded_batch()), reference)
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
    reference = all_predictions(model, **padded_batch())
    folded = model.fold_norms()
    assert folded == len(convolutions) - 1
    assert_same(all_predictions(model, **padded_batch()), reference)
    assert len(calls) == 2


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_logits_do_not_depend_on_how_many_images_pass_the_backbone_at_a_time(chunk_size):
    model = small_model()
    pixel_values, pixel_mask = images((64, 64), (48, 96), (96, 40))
    reference = all_predictions(model, pixel_values=pixel_values, pixel_mask=pixel_mask)
    seen = []
    model.model.backbone.conv_encoder.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.config.chunk_size_backbone = chunk_size
    assert_same(all_predictions(model, pixel_values=pixel_values, pixel_mask=pixel_mask), reference)
    assert seen == [1, 1, 1] if chunk_size == 1 else [2, 1]


@pytest.mark.parametrize("chunk_size", [0, 1, 4, 9])
def test_masks_do_not_depend_on_how_many_queries_pass_the_head_at_a_time(chunk_size):
    model = small_segmenter()
    reference = all_predictions(model, **padded_batch())
    model.config.chunk_size_masks = chunk_size
    assert_same(all_predictions(model, **padded_batch()), reference)


@pytest.mark.parametrize(
    "keep", [{"mask_top_k": 4}, {"mask_threshold": 0.3}, {"mask_threshold": 0.3, "mask_top_k": 2}], ids=str
)
def test_masks_that_are_kept_are_those_of_all_queries(keep):
    model, few = small_segmenter(), []
    model.mask_head.gn1.register_forward_hook(lambda _, args, __: few.append(len(args[0])))
    with torch.no_grad():
        whole = model(**padded_batch())
        assert few == [2 * 9]
        few.clear()
        kept = model(**padded_batch(), **keep)
    scores = whole.logits.softmax(-1)[..., :-1].amax(-1)
    assert torch.equal(kept.logits, whole.logits)
    counts = []
    for image, queries in enumerate(kept.mask_queries):
        best = scores[image].argsort(descending=True)
        best = best[scores[image][best] >= keep.get("mask_threshold", 0.0)][: keep.get("mask_top_k")]
        counts.append(len(best))
        assert queries[: len(best)].tolist() == sorted(best.tolist())
        assert_same(kept.pred_masks[image, : len(best)], whole.pred_masks[image, queries[: len(best)]])
        assert (queries[len(best) :] == -1).all()
        assert not kept.pred_masks[image, len(best) :].any()
    assert kept.pred_masks.shape[1] == max(counts)
    assert sum(few) == sum(counts) < 2 * 9  # no other mask was decoded


def test_where_nothing_is_kept_no_mask_is_decoded():
    with torch.no_grad():
        outputs = small_segmenter()(**padded_batch(), mask_threshold=1.0)
    assert outputs.pred_masks.shape[:2] == outputs.mask_queries.shape == (2, 0)


def test_in_training_only_the_matched_queries_masks_are_decoded():
    model, few = small_segmenter().train(), []
    model.mask_head.gn1.register_forward_hook(lambda _, args, __: few.append(len(args[0])))
    outputs = model(**padded_batch(), labels=targets(3, 2, sizes_hw=SIZES))
    assert few == [3, 2]
    assert outputs.pred_masks is None
