"""Parameter groups: the paper's two learning rates, each trained parameter exactly once."""

import pytest
import torch

from hf_detr import DetrModel
from hf_detr.training import parameter_groups

from ..small_models import small_model


def names_of(model, group) -> set[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_every_trained_parameter_is_in_exactly_one_group():
    model = small_model(freeze_backbone_until="layer1")
    in_groups = [id(parameter) for group in parameter_groups(model) for parameter in group["params"]]
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) < len(list(model.parameters()))
    assert sorted(in_groups) == sorted(trained)


@pytest.mark.parametrize("model_class", ["detector", "model"])
def test_the_backbone_alone_has_its_own_learning_rate(model_class):
    model = small_model() if model_class == "detector" else small_model(DetrModel)
    others, backbone = parameter_groups(model, 2e-4, 3e-5, 0.01)
    assert (others["lr"], backbone["lr"]) == (2e-4, 3e-5)
    assert others["weight_decay"] == backbone["weight_decay"] == 0.01
    assert all("conv_encoder" in name for name in names_of(model, backbone))
    assert not any("conv_encoder" in name for name in names_of(model, others))
    assert any("input_projection" in name for name in names_of(model, others))  # made for the backbone, not of it


def test_the_class_head_can_have_a_learning_rate_of_its_own():
    model = small_model()
    groups = parameter_groups(model, 2e-4, 3e-5, 0.01, class_head_learning_rate=2e-3)
    assert [group["lr"] for group in groups] == [2e-4, 3e-5, 2e-3]
    assert names_of(model, groups[2]) == {"class_labels_classifier.weight", "class_labels_classifier.bias"}
    in_groups = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(in_groups) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_defaults_are_the_papers():
    others, backbone = parameter_groups(small_model())
    assert (others["lr"], backbone["lr"], others["weight_decay"]) == (1e-4, 1e-5, 1e-4)


def test_a_frozen_backbone_leaves_one_group_and_never_moves():
    model = small_model()
    model.freeze_backbone()
    groups = parameter_groups(model)
    assert len(groups) == 1
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert not any("backbone" in name for name in moved)


def test_nothing_to_train_is_an_error():
    model = small_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen.*unfreeze"):
        parameter_groups(model)


@pytest.mark.parametrize(
    "name", ["learning_rate", "backbone_learning_rate", "weight_decay", "class_head_learning_rate"]
)
@pytest.mark.parametrize("value", [-1e-4, float("nan")])
def test_a_negative_number_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        parameter_groups(small_model(), **{name: value})
