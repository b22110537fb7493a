"""Law 17: a claim in a generated card is checked when the card is written."""

from pathlib import Path

import pytest
import torch
import transformers

from hf_detr import DetrForObjectDetection
from hf_detr.checkpoints.card_facts import card_facts
from hf_detr.checkpoints.model_card import model_card
from hf_detr.checkpoints.stock_check import check_in_stock
from hf_detr.checkpoints.tiny import tiny_checkpoint
from tests.small_models import images, small_model

RESNET = {"model_type": "resnet", "out_features": ["stage4"], "depths": [1, 1, 1, 1], "layer_type": "basic",
          "hidden_sizes": [16, 16, 16, 16], "embedding_size": 16}  # fmt: skip


def card_of(model) -> str:
    return model_card(card_facts(model, "somebody/detector"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"dilation": True}, {"backbone_config": RESNET}, {"num_channels": 1}, {"denoising_queries": 2}],
    ids=str,
)
def test_what_runs_in_stock_says_so(changes):
    model = small_model(**changes)
    check = check_in_stock(model)
    assert (check.outcome, check.version) == ("equal", transformers.__version__)
    assert check.difference < 1e-3
    assert "It runs in Transformers without further code" in card_of(model)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "regnety_002"])
def test_norms_that_carry_the_activation_do_not_run_in_stock_and_the_card_says_by_how_much(backbone, tmp_path):
    model = small_model(backbone=backbone)
    check = check_in_stock(model)
    assert check.outcome == "differs"
    model.save_pretrained(tmp_path)
    stock, pixel_values = transformers.DetrForObjectDetection.from_pretrained(tmp_path), images((64, 96))[0]
    with torch.no_grad():  # as somebody would find out who believed a card
        assert (stock.eval()(pixel_values).logits - model(pixel_values).logits).abs().max() > 1e-3
    card = card_of(model)
    assert f"**Do not use it in Transformers alone**: transformers {transformers.__version__} loads it" in card
    assert f"off by up to {check.difference:.2g}" in card
    assert "pipeline(" not in card


def test_what_stock_cannot_read_says_why():
    # stock does not know further arguments of the timm network: another number of channels
    check = check_in_stock(model := small_model(backbone_kwargs={"channels": (16, 16, 16, 16)}))
    assert check.outcome == "fails"
    assert "mismatched" in check.reason
    assert "It does not run in Transformers alone" in card_of(model)


def test_the_shipped_card_says_of_stock_what_is_seen_there():
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint())
    said = (Path(tiny_checkpoint()) / "README.md").read_text()
    claim = "It runs in Transformers without further code: transformers"
    assert (claim in said) == (check_in_stock(model).outcome == "equal")
    assert "generated" in said.split("## Data")[1]


def test_a_check_that_cannot_be_made_loses_nothing(monkeypatch):
    model = small_model()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    assert "was not checked (No space left on device)" in card_of(model)


def test_checking_leaves_the_model_the_random_numbers_and_the_logs_as_they_were(capfd, recwarn):
    model = small_model().train()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verbosity, state = transformers.logging.get_verbosity(), torch.get_rng_state()
    assert check_in_stock(model).outcome == "equal"
    assert torch.equal(torch.get_rng_state(), state)
    assert transformers.logging.get_verbosity() == verbosity
    assert model.training
    assert not calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_are_checked_in_float32(dtype):
    assert check_in_stock(small_model().to(dtype)).outcome == "equal"
