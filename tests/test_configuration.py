"""DetrConfig: impossible and contradictory values fail when they are written down, and say what to change."""

import copy
import json
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
        ({"num_queries": None}, "num_queries=None"),
        ({"num_queries": 10**30}, "num_queries=10"),
        ({"num_labels": 10**9}, "num_labels=1000000000 is not a whole number from 1 to 1,000,000"),
        ({"num_labels": "3"}, "num_labels='3'"),
        ({"giou_cost": float("inf")}, "giou_cost=inf"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"auxiliary_loss": None}, "auxiliary_loss=None is not True or False"),
        ({"id2label": ["cat", "dog"]}, r"id2label=\['cat', 'dog'\] is not a dict"),
        ({"id2label": {"cat": 0}}, "is not a dict"),
        ({"backbone_kwargs": "out_indices"}, "backbone_kwargs='out_indices' must be a dict"),
        ({"timm_kwargs": ["img_size"]}, "must be a dict"),
        ({"hf_detr": []}, r"hf_detr=\[\] is not an object"),
        ({"backbone": 50}, "backbone=50 is no name"),
        ({"backbone_config": {"model_type": ["resnet"]}}, "model_type"),
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


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"[1, 2]", ValueError),
        (b"null", ValueError),
        (b"", (OSError, ValueError)),
        (b"{", (OSError, ValueError)),
        (b'{"model_type": "detr\xff"}', (OSError, ValueError)),
        (b"[" * 100_000, ValueError),
        (b'{"num_queries": ' + b"9" * 5000 + b"}", ValueError),
        (b'{"d_model": 1e999}', ValueError),
        (b'{"dropout": NaN}', ValueError),
        (b'{"backbone_config": {"model_type": "timm_backbone", "backbone": 50}}', ValueError),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_file_that_is_no_configuration_is_an_error_that_names_it(content, error, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=str(tmp_path)):
        DetrConfig.from_pretrained(tmp_path)
    with pytest.raises(error, match=r"config\.json"):
        DetrConfig.from_json_file(tmp_path / "config.json")


def test_null_fields_of_old_files_mean_the_default(tmp_path):
    backbone = ("backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone")
    names = (*backbone, "id2label", "label2id", "num_labels", "dilation", "num_hidden_layers")
    (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(names)))
    config, default = DetrConfig.from_pretrained(tmp_path), DetrConfig()
    assert (config.backbone_config.backbone, config.num_labels, config.dilation) == ("resnet50", 2, False)
    assert config.encoder_layers == default.encoder_layers
