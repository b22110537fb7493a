"""The backbone of a configuration: the keys of every generation become one `backbone_config`.

`fields_of_file` stands between a file and everything else: what it lets through describes an architecture, and cannot
name code to run, or another repository or file to open.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

# Keys by which Transformers finds code, kernels, weights or configurations that lie elsewhere. Left out wherever they
# stand in a file; as arguments of `from_pretrained` they mean what they mean there.
_OPENS_SOMETHING = frozenset(
    ("auto_map", "trust_remote_code", "code_revision", "custom_pipelines", "configuration_files", "name_or_path",
     "_name_or_path", "attn_implementation", "_attn_implementation", "experts_implementation",
     "_experts_implementation", "use_kernels", "kernel_config")
)  # fmt: skip
# Arguments of timm's factory that do not describe the architecture: weights and configurations to open, or settings of
# the process.
_NOT_ARCHITECTURE = frozenset(
    ("model_name", "model_cls", "variant", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
     "pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "pretrained_custom_load", "checkpoint_path",
     "cache_dir", "model_cfg", "feature_cfg", "feature_cls", "features_cls", "features_only", "kwargs_filter",
     "scriptable", "exportable", "no_jit", "trust_remote_code", "in_chans", "out_indices", "output_stride")
)  # fmt: skip
_IN_CHANS_NAMES = ("in_chans", "num_channels")


def fields_of_file(fields: Any, owner: type) -> dict[str, Any]:
    """The fields of a configuration file that `owner` may be made from, copied.

    Raises:
        ValueError: not a JSON object; a backbone that only another repository describes; weights outside the folder.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"a configuration is a JSON object of fields, not {type(fields).__name__}.")
    labels = {name: fields[name] for name in ("id2label", "label2id") if name in fields}  # any name may be a class
    fields = {name: value for name, value in _described(fields).items() if not callable(getattr(owner, name, None))}
    fields |= labels
    named = fields.get("backbone")
    if named is not None and fields.get("backbone_config") is None and fields.get("use_timm_backbone") is False:
        raise ValueError(
            f"the backbone is the checkpoint {named!r} of another repository, which is not looked up while a file is "
            "read. Write its architecture down as backbone_config: once, in Python, "
            f"DetrConfig(use_timm_backbone=False, backbone={named!r}).backbone_config.to_dict()."
        )
    weights = fields.get("transformers_weights")
    if weights is not None and (PurePath(str(weights)).is_absolute() or ".." in PurePath(str(weights)).parts):
        raise ValueError(f"transformers_weights={weights!r} lies outside the checkpoint's folder.")
    return fields


def _described(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _described(one) for name, one in value.items() if name not in _OPENS_SOMETHING}
    return [_described(one) for one in value] if isinstance(value, list) else value


def timm_backbone(name: str | None, num_channels: int) -> PreTrainedConfig:
    """The configuration of a timm network with ResNet's four stages; networks of another depth are met when they are
    built (see `nn.backbone`)."""
    check_timm(name or "resnet50", None)
    return CONFIG_MAPPING["timm_backbone"](
        backbone=name or "resnet50", num_channels=num_channels, out_indices=[1, 2, 3, 4]
    )


def apply_timm_kwargs(backbone_config: PreTrainedConfig, backbone_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Sets what `backbone_config` has fields for; returns the other arguments."""
    others = {name: value for name, value in backbone_kwargs.items() if value is not None}
    for name in ("features_only", "pretrained"):  # set by the model itself
        others.pop(name, None)
    for name in (*_IN_CHANS_NAMES, "out_indices", "output_stride"):
        if (value := others.pop(name, None)) is not None:
            value = list(value) if name == "out_indices" else value
            setattr(backbone_config, "num_channels" if name in _IN_CHANS_NAMES else name, value)
    return others


def transformers_backbone(checkpoint: str | None, overrides: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a checkpoint (a folder or a Hub name), or stock's default where none is named. Code that a
    repository brings is never run."""
    if "trust_remote_code" in overrides:
        raise ValueError(
            "trust_remote_code: a backbone's own code is not run; register it with AutoConfig and AutoBackbone, and "
            "give its configuration as backbone_config."
        )
    if checkpoint is None:
        return CONFIG_MAPPING["resnet"](**{"out_features": ["stage4"], **overrides})
    return as_backbone_config(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, **overrides))


def as_backbone_config(backbone: dict | PreTrainedConfig) -> PreTrainedConfig:
    """A configuration from a dict with `model_type`. TypeError and ValueError for what describes no backbone."""
    if not isinstance(backbone, (dict, PreTrainedConfig)):
        raise TypeError(f"backbone_config must be a configuration or a dict, not {type(backbone).__name__}.")
    is_dict = isinstance(backbone, dict)
    model_type = backbone.get("model_type") if is_dict else backbone.model_type
    config_class = type(backbone)
    if is_dict:
        known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
        config_class = CONFIG_MAPPING[model_type] if known else None
    if config_class is None or config_class not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"backbone_config has model_type {model_type!r}; name 'timm_backbone' (with 'backbone': a timm network) "
            "or a backbone of transformers such as 'resnet'."
        )
    return config_class.from_dict(dict(backbone)) if is_dict else backbone


def check_timm(name: Any, timm_kwargs: Any) -> None:
    """Raises ValueError where a timm network is not described by name and architecture alone."""
    if not name:
        raise ValueError("backbone_config names no network; set backbone_config['backbone'], e.g. 'resnet50'.")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]+", name):
        raise ValueError(
            f"backbone={name!r} is no name of timm's list, such as 'resnet50' or 'resnet50.a1_in1k'; a repository or "
            "a folder is not opened for a backbone."
        )
    if timm_kwargs is not None and not isinstance(timm_kwargs, dict):
        raise ValueError(f"timm_kwargs={timm_kwargs!r} must be a dict of arguments, or None.")
    refused = sorted(_NOT_ARCHITECTURE & set(timm_kwargs or ()))
    if refused:
        raise ValueError(
            f"timm_kwargs describe the architecture alone, and {', '.join(refused)} does not. Channels, stages and "
            "stride belong in backbone_config; load weights of your own into model.backbone.model once it is made."
        )


def check_backbone(config: Any) -> None:
    """Raises ValueError where the backbone of a `DetrConfig` and its other fields contradict each other."""
    backbone = config.backbone_config
    is_timm = backbone.model_type == "timm_backbone"
    if is_timm:
        check_timm(backbone.backbone, config.timm_kwargs)
    if config.timm_kwargs and not is_timm:
        raise ValueError(f"timm_kwargs={config.timm_kwargs} needs a timm backbone, not {backbone.model_type!r}.")
    if config.dilation and not is_timm:
        raise ValueError(
            f"dilation=True needs a timm backbone, not {backbone.model_type!r}; "
            "set dilation=False, or backbone='resnet50'."
        )
    stride = getattr(backbone, "output_stride", None) if is_timm else None
    if config.dilation and stride not in (8, 16):
        raise ValueError(
            f"dilation=True contradicts backbone_config.output_stride={stride}; set it to 16, or dilation=False."
        )
    channels = getattr(backbone, "num_channels", config.num_channels)
    if channels != config.num_channels:
        if config.num_channels != 3:
            raise ValueError(
                f"num_channels={config.num_channels} contradicts backbone_config.num_channels={channels}; "
                "set both to the channels of your images."
            )
        config.num_channels = channels  # only the backbone's was set
