"""DetrConfig: impossible and contradictory values fail when they are written down, and say what to change."""

import copy
import warnings

import pytest
import transformers

from hf_detr import DetrConfig, DetrForObjectDetection
from tests.small_models import small_config

RESNET = {"model_type": "resnet", "out_features": ["stage4"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": 100}, r"d_model=100 does not divide among encoder_attention_heads=8; take d_model=104"),
        ({"d_model": 42, "encoder_attention_heads": 2, "decoder_attention_heads": 2}, r"multiple of 4 .* take 44"),
        ({"decoder_attention_heads": 7}, "decoder_attention_heads=7"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"num_queries": 10.5}, "num_queries=10.5"),
        ({"num_queries": True}, "num_queries=True"),
        ({"decoder_layers": 0}, "decoder_layers=0"),
        ({"encoder_layers": -1}, "encoder_layers=-1"),
        ({"num_labels": 0}, "num_labels=0"),
        ({"dropout": 1.0}, r"dropout=1.0 is not a chance in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"activation_dropout": "0.1"}, "activation_dropout='0.1'"),
        ({"position_embedding_type": "sin"}, r"position_embedding_type='sin' is not one of \('sine', 'learned'\)"),
        ({"activation_function": "rellu"}, r"'rellu' is not known .* did you mean .*'relu'"),
        ({"eos_coefficient": -1}, "eos_coefficient=-1"),
        ({"class_cost": 0, "bbox_cost": 0, "giou_cost": 0}, "any matching is as good"),
        ({"freeze_backbone_until": 1.5}, "freeze_backbone_until=1.5"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, r"num_labels=3 contradicts id2label, which names 2"),
        ({"backbone": "resnet18", "backbone_config": RESNET}, "keep one of them"),
        ({"use_timm_backbone": True, "backbone_config": RESNET}, "use_timm_backbone=True contradicts"),
        ({"dilation": True, "backbone_config": RESNET}, "dilation=True needs a timm backbone"),
        ({"dilation": True, "backbone_kwargs": {"output_stride": 32}}, "output_stride=32"),
        ({"num_channels": 1, "backbone_config": RESNET}, "num_channels=1 contradicts backbone_config.num_channels=3"),
        ({"backbone_config": {"depths": [1]}}, "model_type None"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "names no network"),
        ({"backbone_config": RESNET, "backbone_kwargs": {"img_size": 3}}, "only applies to timm"),
    ],
)
def test_impossible_values_fail_and_say_what_to_change(values, message):
    with pytest.raises(ValueError, match=message):
        DetrConfig(**values)


def test_a_backbone_of_the_wrong_type_is_a_type_error():
    with pytest.raises(TypeError, match="must be a configuration or a dict, not list"):
        DetrConfig(backbone_config=["resnet50"])


def test_a_model_checks_fields_that_were_set_since():
    config = small_config()
    config.d_model = 30
    with pytest.raises(ValueError, match="d_model=30"):
        DetrForObjectDetection(config)


def test_old_keys_set_since_are_understood():
    config = small_config()
    config.backbone, config.backbone_config, config.use_timm_backbone = "tf_mobilenetv3_small_075", None, True
    config.backbone_kwargs = {"out_indices": [2, 3, 4]}
    model = DetrForObjectDetection(config)
    assert len(model.model.backbone.conv_encoder.intermediate_channel_sizes) == 3


def test_old_and_new_keys_make_the_same_backbone():
    old = DetrConfig(backbone="resnet18", backbone_kwargs={"in_chans": 1, "out_indices": [3, 4], "output_stride": 16})
    new = DetrConfig(
        backbone_config={
            "model_type": "timm_backbone",
            "backbone": "resnet18",
            "num_channels": 1,
            "out_indices": [3, 4],
            "output_stride": 16,
        }
    )
    assert old.backbone_config.to_dict() == new.backbone_config.to_dict()
    assert old.num_channels == new.num_channels == 1


def test_further_timm_arguments_reach_the_network():
    config = small_config(backbone_kwargs={"drop_path_rate": 0.25})
    assert config.timm_kwargs == {"drop_path_rate": 0.25}
    drops = [m for m in DetrForObjectDetection(config).modules() if type(m).__name__ == "DropPath"]
    assert drops


def test_copies_and_dicts_make_equal_configurations():
    config = small_config(dilation=True, freeze_backbone_until=2, id2label={0: "a", 1: "b"}, num_labels=2)
    for again in (copy.deepcopy(config), DetrConfig.from_dict(config.to_dict()), DetrConfig(**config.to_dict())):
        assert again.to_dict() == config.to_dict()
        assert again.auxiliary_loss
        assert again.freeze_backbone_until == 2


def test_from_pretrained_takes_changes(tmp_path):
    small_config().save_pretrained(tmp_path)
    config = DetrConfig.from_pretrained(tmp_path, auxiliary_loss=False, num_queries=3, id2label={0: "a"})
    assert (config.auxiliary_loss, config.num_queries, config.num_labels) == (False, 3, 1)
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="id2label has a label2id")
        again = DetrConfig.from_pretrained(tmp_path)
    assert again.label2id == {"a": 0}


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_other_names_of_a_field_read_and_write_it(name):
    field = DetrConfig.attribute_map[name]
    config = DetrConfig(**{name: 16})
    assert getattr(config, name) == getattr(config, field) == 16


def test_stock_configurations_can_be_taken_over():
    stock = transformers.DetrConfig(num_queries=7, backbone="resnet18")
    ours = DetrConfig.from_dict(stock.to_dict())
    assert (ours.num_queries, ours.backbone_config.backbone) == (7, "resnet18")
    assert not ours.auxiliary_loss
