"""Training-only help changes nothing at inference, and nothing of what the object queries compute in training."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open

from hf_detr import DetrForObjectDetection
from tests.small_models import images, small_model, targets

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
ALL = {"denoising_queries": 3, "query_groups": 3, "encoder_auxiliary_loss": True}
COUNTS = (3, 0, 7)
PIXELS, MASK = images((64, 64), (96, 64), (64, 96))


def with_help(plain: DetrForObjectDetection, **changes) -> DetrForObjectDetection:
    """A model with the weights of `plain`, and random ones where it has none."""
    model = small_model(seed=5, **{**NO_DROPOUT, **ALL, **changes}).double().train()
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def own_loss(outputs, config) -> torch.Tensor:
    """The loss of the object queries, from its parts."""
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    layers = ["", *(f"_{layer}" for layer in range(config.decoder_layers - 1))]
    return sum(weight * outputs.loss_dict[name + layer] for name, weight in weights.items() for layer in layers)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"query_groups": 1, "encoder_auxiliary_loss": False},
        {"denoising_queries": 0, "encoder_auxiliary_loss": False},
        {"denoising_queries": 0, "query_groups": 1},
        {"auxiliary_loss": False},
    ],
    ids=["all", "denoising", "groups", "encoder", "last layer only"],
)
def test_the_object_queries_compute_what_they_would_alone(changes):
    shared = {key: value for key, value in changes.items() if key not in ALL}
    plain = small_model(**NO_DROPOUT, **shared).double().train()
    model = with_help(plain, **changes)
    inputs = {"pixel_values": PIXELS.double(), "pixel_mask": MASK, "labels": targets(*COUNTS)}
    wanted, outputs = plain(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)

    for name in ("logits", "pred_boxes", "last_hidden_state"):
        torch.testing.assert_close(outputs[name], wanted[name], rtol=0, atol=1e-12)
    for ours, theirs in zip(outputs.decoder_hidden_states, wanted.decoder_hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for ours, theirs in zip(outputs.auxiliary_outputs or (), wanted.auxiliary_outputs or (), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for name, value in wanted.loss_dict.items():
        torch.testing.assert_close(outputs.loss_dict[name], value, rtol=0, atol=1e-12)
    names = ("loss_groups", "loss_denoising", "loss_encoder")
    extra = [outputs.loss_dict[name] for name in names if name in outputs.loss_dict]
    torch.testing.assert_close(outputs.loss, wanted.loss + sum(extra), rtol=0, atol=1e-12)

    wanted.loss.backward()
    layers = plain.config.decoder_layers if plain.config.auxiliary_loss else 1
    model.config.decoder_layers = layers  # only for own_loss
    own_loss(outputs, model.config).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any("training_only" in name for name in ours)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours.get(name, torch.zeros_like(gradient)), gradient, rtol=1e-9, atol=1e-12)


def test_nothing_of_it_runs_at_inference():
    model = small_model(**ALL)
    plain = small_model()
    plain.load_state_dict(model.state_dict(), strict=False)
    ours, theirs = model(PIXELS, MASK, labels=targets(*COUNTS)), plain(PIXELS, MASK, labels=targets(*COUNTS))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    assert set(ours.loss_dict) == set(theirs.loss_dict)


@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0), (12, 12, 12)], ids=["mixed", "no object", "more than queries"])
def test_every_parameter_has_a_finite_gradient(counts):
    model = small_model(**ALL).train()
    model(PIXELS, MASK, labels=targets(*counts)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_fillers_of_an_image_with_fewer_objects_change_nothing():
    """An image's copies are mended alike alone and beside an image with more objects."""
    model = small_model(**NO_DROPOUT, denoising_queries=2, denoising_box_noise=0.0, denoising_label_noise=0.0).double()
    model.train()
    images_ = PIXELS[:, :, :64, :64].double()
    few, many = targets(2, 8)
    alone = model(images_[:1], labels=[few]).loss_dict["loss_denoising"] * 2
    other = model(images_[1:2], labels=[many]).loss_dict["loss_denoising"] * 8
    both = model(images_[:2], labels=[few, many]).loss_dict["loss_denoising"] * 10
    torch.testing.assert_close(both, alone + other, rtol=1e-9, atol=0)


def test_micro_batches_are_one_batch():
    model = small_model(**NO_DROPOUT, **ALL, denoising_box_noise=0.0, denoising_label_noise=0.0).double().train()
    pixels, labels = PIXELS[:, :, :64, :64].double(), targets(*COUNTS)
    whole = model(pixels, labels=labels).loss
    counts = {"num_items_in_batch": sum(COUNTS), "num_images_in_batch": len(COUNTS)}
    parts = [model(pixels[i : i + 1], labels=labels[i : i + 1], **counts).loss for i in range(len(COUNTS))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=0)


def test_copies_are_spoilt_by_no_more_than_they_should_be():
    from hf_detr.loss import noise_targets, pack_targets

    torch.manual_seed(0)
    labels = [{"class_labels": torch.randint(5, (50,)), "boxes": torch.tensor([[0.5, 0.4, 0.2, 0.1]]).repeat(50, 1)}]
    packed = pack_targets(labels, 1, torch.device("cpu"))
    noised = noise_targets(packed, 40, 5, box_noise=0.4, label_noise=0.25)
    assert noised.noised_boxes_cxcywh.shape == (1, 2000, 4)
    shift = noised.noised_boxes_cxcywh - noised.boxes_cxcywh
    limits = torch.tensor([0.4 * 0.1, 0.4 * 0.05, 0.4 * 0.2, 0.4 * 0.1])
    reached = shift.abs().amax((0, 1)) / limits
    assert ((reached > 0.95) & (reached < 1 + 1e-5)).all()
    changed = (noised.noised_labels != noised.class_labels).float().mean()
    assert 0.15 < changed < 0.25  # a fifth of the random labels are right by chance
    assert noised.noised_boxes_cxcywh.min() >= 0


def test_what_is_saved_is_a_plain_detr(tmp_path):
    model = small_model(**ALL)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "training_only" in name]  # noqa: SIM118, not a dict
    stock, info = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(stock(PIXELS, MASK).logits, model(PIXELS, MASK).logits, rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["hf_detr"]["denoising_queries"] == 3
    again, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.training_only is not None  # it trains with the loss it had


def test_a_state_dict_has_all_of_it():
    model = small_model(**ALL)
    again = small_model(seed=1, **ALL)
    again.load_state_dict(model.state_dict())
    for name, value in model.training_only.state_dict().items():
        assert torch.equal(again.training_only.state_dict()[name], value), name


def test_new_groups_start_from_the_trained_queries(tmp_path):
    plain = small_model()
    trained = plain.model.query_position_embeddings.weight
    plain.save_pretrained(tmp_path)
    loaded = DetrForObjectDetection.from_pretrained(tmp_path, query_groups=3)
    plain.set_training_only(query_groups=3)
    for model in (loaded, plain):
        groups = model.training_only.queries.group_positions.weight.unflatten(0, (2, -1))
        for group in groups:
            assert 0 < (group - trained).abs().mean() < 0.2 * trained.std()
        assert not torch.equal(groups[0], groups[1])


def test_other_classes_and_other_numbers_of_queries_go_with_it():
    model = small_model(**ALL)
    kept = model.training_only.queries.label_contents.weight[2].clone()
    model.config.id2label = {index: f"class {index}" for index in range(5)}
    model.set_classes({0: "class 2", 1: "new"})
    torch.testing.assert_close(model.training_only.queries.label_contents.weight[0], kept)
    model.resize_queries(4)
    labels = [{**label, "class_labels": label["class_labels"] % 2} for label in targets(*COUNTS)]
    outputs = model.train()(PIXELS, MASK, labels=labels)
    assert outputs.logits.shape == (3, 4, 3)
    assert outputs.loss.isfinite()


def test_impossible_numbers_leave_the_model_as_it_was():
    model = small_model(**ALL)
    with pytest.raises(ValueError, match="query_groups=0"):
        model.set_training_only(query_groups=0)
    assert model.config.query_groups == 3
    model.set_training_only(denoising_queries=0, query_groups=1, encoder_auxiliary_loss=False)
    assert model.training_only is None


def test_a_cell_answers_for_the_smallest_object_it_lies_on_and_every_object_has_a_cell():
    from hf_detr.loss import pack_targets
    from hf_detr.loss.encoder_loss import assign_cells
    from hf_detr.nn.position_embedding import cell_centres_xy

    # two images on a map of 4 x 8 cells, of the second only 4 x 4 are picture
    mask = torch.ones(2, 4, 8, dtype=torch.bool)
    mask[1, :, 4:] = False
    centres = cell_centres_xy(4, 8, mask, mask.device)
    torch.testing.assert_close(centres[0, 1], torch.tensor([1.5 / 8, 0.5 / 4]))
    torch.testing.assert_close(centres[1, 1], torch.tensor([1.5 / 4, 0.5 / 4]))
    assert (centres[1].view(4, 8, 2)[:, 4:] == -1).all()
    labels = [
        {
            "class_labels": torch.tensor([0, 1, 2]),  # a large one, one within, and one smaller than a cell
            "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.6, 0.5, 0.3, 0.6], [0.05, 0.95, 0.01, 0.01]]),
        },
        {"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]])},
    ]
    owner = assign_cells(centres, pack_targets(labels, 2, mask.device)).view(2, 4, 8)
    none, big, within, tiny, other = 4, 0, 1, 2, 3
    assert owner[0].tolist() == [
        [none] * 8,
        [none, none, big, big, within, big, none, none],
        [none, none, big, big, within, big, none, none],
        [tiny, *[none] * 7],
    ]
    assert owner[1].tolist() == [[none] * 8, *[[none, other, other, *[none] * 5]] * 2, [none] * 8]


def test_the_loss_of_the_encoder_is_lowest_where_cells_say_what_they_lie_on():
    from hf_detr.loss import CellPredictions, pack_targets
    from hf_detr.loss.encoder_loss import assign_cells, encoder_loss
    from hf_detr.nn.position_embedding import cell_centres_xy

    centres = cell_centres_xy(6, 6, None, torch.device("cpu"))
    labels = pack_targets(targets(3, 0, 5), 3, torch.device("cpu"))
    owner = assign_cells(centres, labels)
    classes = torch.cat((labels.class_labels, torch.tensor([5])))[owner]
    boxes = torch.cat((labels.boxes_cxcywh, torch.full((1, 4), 0.1)))[owner]
    right = CellPredictions(50 * torch.nn.functional.one_hot(classes, 6).float(), boxes, centres)
    wrong = CellPredictions(right.logits.roll(1, -1), (boxes + 0.1).clamp(max=1), centres)
    for name, value in encoder_loss(right, labels, 8, 3).items():
        assert value.abs() < 1e-5, name
    assert all(value > 0.05 for value in encoder_loss(wrong, labels, 8, 3).values())


def test_padding_says_nothing_in_the_loss_of_the_encoder():
    """An image's cells have the same loss alone and beside a larger image, whatever is said on padding."""
    from hf_detr.loss import CellPredictions, pack_targets
    from hf_detr.loss.encoder_loss import encoder_loss
    from hf_detr.nn.position_embedding import cell_centres_xy

    labels, device = targets(4, 6), torch.device("cpu")
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 4:], mask[0, :, 5:] = False, False
    said, boxes = torch.randn(2, 6, 8, 6), torch.rand(2, 6, 8, 4)

    def loss(image: slice, height: int, width: int, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        centres = cell_centres_xy(height, width, mask, device)
        cut = (image, slice(height), slice(width))
        cells = CellPredictions(said[cut].flatten(1, 2), boxes[cut].flatten(1, 2), centres)
        return encoder_loss(cells, pack_targets(labels[image], len(labels[image]), device), 10, 2)

    alone, other = loss(slice(0, 1), 4, 5, None), loss(slice(1, 2), 6, 8, None)
    for name, value in loss(slice(0, 2), 6, 8, mask).items():
        torch.testing.assert_close(value, alone[name] + other[name])


@pytest.mark.parametrize("change", ["fewer copies", "more copies", "other groups", "queries"])
def test_trained_parts_outlast_a_change_of_the_others(change):
    model = small_model(**ALL)
    with torch.no_grad():
        for parameter in model.training_only.parameters():
            parameter.copy_(torch.randn_like(parameter))
    before = {name: value.clone() for name, value in model.training_only.state_dict().items()}
    groups = before["queries.group_positions.weight"].unflatten(0, (2, -1))
    if change == "fewer copies":
        model.set_training_only(denoising_queries=2)
    elif change == "more copies":
        model.set_training_only(denoising_queries=7)
    elif change == "other groups":
        model.set_training_only(query_groups=2)
    else:
        model.resize_queries(4)
    after = model.training_only.state_dict()
    kept = [name for name in before if "group_positions" not in name]
    assert len(kept) > 10
    for name in kept:
        assert torch.equal(after[name], before[name]), name
    queries = model.config.num_queries
    for ours, theirs in zip(after["queries.group_positions.weight"].view(-1, queries, 32), groups, strict=False):
        assert torch.equal(ours, theirs[:queries])
    assert model.train()(PIXELS, MASK, labels=targets(*COUNTS)).loss.isfinite()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parts", [{}, ALL], ids=["plain", "training-only parts"])
@pytest.mark.parametrize("given", [0, 1, 2, 4])
def test_labels_are_counted_against_inputs_embeds(given, parts, training):
    model, maps = small_model(**parts).train(training), torch.randn(3, 9, 32)
    with pytest.raises(ValueError, match=f"{given} label dicts for 3 images"):
        model(inputs_embeds=maps, labels=targets(*[2] * given))
    assert model(inputs_embeds=maps, labels=targets(2, 2, 2)).loss.isfinite()
