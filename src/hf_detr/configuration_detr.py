"""DetrConfig: every number that makes a DETR, checked when it is written down.

A configuration file is shared with stock transformers. Whatever that does not know lies in one block of the file,
`"hf_detr"`, so that stock reads the rest as its own. One key differs on purpose: stock's `auxiliary_loss` changes the
forward pass (it feeds each decoder layer the *normed* state of the one before), so `auxiliary_loss` is written as
false, which makes stock compute what this package computes, and its true value lies in the block.
"""

import difflib
import warnings
from typing import Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

# What the block of the configuration file holds.
_OWN_FIELDS = (
    "auxiliary_loss",
    "freeze_backbone_norms",
    "freeze_backbone_until",
    "timm_kwargs",
    "denoising_queries",
    "denoising_box_noise",
    "denoising_label_noise",
    "query_groups",
    "encoder_auxiliary_loss",
    "chunk_size_backbone",
)
# Names that are views of others; a file that states both states the same.
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
_POSITION_EMBEDDINGS = ("sine", "learned")


class DetrConfig(PreTrainedConfig):
    """Configuration of `DetrModel` and `DetrForObjectDetection` (Carion et al., ECCV 2020; defaults are the paper's).

    The network:
        backbone_config: the backbone, as a configuration, a dict with `model_type`, or left out. `timm_backbone` names
            any timm network with feature maps; other model types are transformers' AutoBackbones.
        num_channels: channels of `pixel_values`.
        d_model: width of the transformer; a multiple of both head counts, and of 4 for sine positions.
        encoder_layers, encoder_attention_heads, encoder_ffn_dim: the encoder over the feature map (paper, A.3).
        decoder_layers, decoder_attention_heads, decoder_ffn_dim: the decoder over the object queries.
        num_queries: detections per image, at most; clearly more than the objects of any image (paper: 100 for COCO).
        position_embedding_type: "sine" (fixed, any size) or "learned" (at most 50 x 50 cells).
        dilation: dilate the last stage instead of striding, for a map of twice the resolution (the paper's DC5).
        activation_function: of the feed-forward networks; a name that transformers knows.
        id2label, label2id, num_labels: the classes. The "no object" class is one more row and has no name.

    Training:
        dropout: after each attention and feed-forward block.
        attention_dropout, activation_dropout: on the attention weights, and inside the feed-forward network. The paper
            uses its one dropout of 0.1 in all three places; files of stock checkpoints set these two to 0.
        encoder_layerdrop, decoder_layerdrop: chance to skip a whole layer in training (0 in the paper).
        auxiliary_loss: train every decoder layer's predictions, not only the last (paper, 3.2). Never changes logits.
        class_cost, bbox_cost, giou_cost: weights of the matching cost (paper, 3.1).
        bbox_loss_coefficient, giou_loss_coefficient: weights of the box losses against a classification loss of 1.
        eos_coefficient: weight of the "no object" class in the classification loss; about 7 objects for 100 queries.
        mask_loss_coefficient, dice_loss_coefficient: weights of the segmentation losses.
        init_std: kept for stock transformers; the paper's initialisation does not use it.
        init_xavier_std: gain of the mask head's attention initialisation.

    The backbone, by the keys that configuration files up to transformers 4 hold; they are read and turned into
    `backbone_config`:
        backbone: a timm name ("resnet50"), or with `use_timm_backbone=False` a checkpoint of a transformers backbone.
        use_timm_backbone: whether `backbone` names a timm network.
        backbone_kwargs: `out_indices`, `output_stride`, `in_chans`, or further arguments of `timm.create_model`.
        use_pretrained_backbone: start a fresh model from the backbone's published weights. Loading a full checkpoint
            never fetches them.

    Of this package:
        freeze_backbone_norms: run the backbone's batch norms as fixed affine maps (paper, A.4).
        freeze_backbone_until: the last stage that does not train: a stage's name ("layer1") or index, "all", None for
            none, or "auto": stem and first stage for ResNets (as published), nothing for others.
        chunk_size_backbone: at inference, the images that pass the backbone at a time, for less memory; 0 for all.
        timm_kwargs: further arguments of `timm.create_model` (`img_size`, `drop_path_rate`, ...).

    Of this package, help in training that changes nothing at inference (all off, as in the paper):
        denoising_queries: noised copies of each target that the decoder learns to mend; see `loss.denoising`.
        denoising_box_noise: how far they are moved and resized, in shares of the box.
        denoising_label_noise: chance that a copy's label is a random one.
        query_groups: 1, or how many groups of `num_queries` object queries train, each matched on its own.
        encoder_auxiliary_loss: every cell of the encoded feature map says which object it lies on; see
            `loss.encoder_loss`.

    Raises:
        ValueError: a value is impossible or contradicts another; the message says what to change.
    """

    model_type = "detr"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012, the base class's own form
    # what a Trainer need not gather over an evaluation
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "past_key_values",
        "loss_dict",
        "auxiliary_outputs",
        "last_hidden_state",
        "encoder_last_hidden_state",
    ]
    attribute_map = _ALIASES

    backbone_config: dict | PreTrainedConfig | None = None
    num_channels: int = 3
    num_queries: int = 100
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 8
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    auxiliary_loss: bool = True
    position_embedding_type: str = "sine"
    dilation: bool = False
    class_cost: float = 1
    bbox_cost: float = 5
    giou_cost: float = 2
    mask_loss_coefficient: float = 1
    dice_loss_coefficient: float = 1
    bbox_loss_coefficient: float = 5
    giou_loss_coefficient: float = 2
    eos_coefficient: float = 0.1
    use_pretrained_backbone: bool = False
    freeze_backbone_norms: bool = True
    freeze_backbone_until: str | int | None = "auto"
    timm_kwargs: dict | None = None
    denoising_queries: int = 0
    denoising_box_noise: float = 0.4
    denoising_label_noise: float = 0.2
    query_groups: int = 1
    encoder_auxiliary_loss: bool = False
    chunk_size_backbone: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        own_block = kwargs.pop("hf_detr", None)
        if own_block is not None:
            self._read_own_block(own_block)
        elif self.auxiliary_loss and kwargs.get("transformers_version", self.transformers_version):
            warnings.warn(
                "This configuration was written by stock transformers with auxiliary_loss=True. Stock then feeds each "
                "decoder layer the normed state of the one before, which this package (like the paper) does not: its "
                "weights give other outputs here. Fine-tune them, or set auxiliary_loss=False if they were trained "
                "without it.",
                UserWarning,
            )
        for alias, field in _ALIASES.items():
            if (value := kwargs.pop(alias, None)) is not None:
                setattr(self, field, value)
        num_labels = kwargs.get("num_labels")
        if self.id2label is not None and num_labels is not None and len(self.id2label) != num_labels:
            raise ValueError(
                f"num_labels={num_labels} contradicts id2label, which names {len(self.id2label)} classes; "
                "pass id2label alone."
            )
        self._take_backbone(
            backbone=kwargs.pop("backbone", None),
            use_timm_backbone=kwargs.pop("use_timm_backbone", None),
            backbone_kwargs=kwargs.pop("backbone_kwargs", None),
        )
        super().__post_init__(**kwargs)
        self._check_labels()
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and isinstance(value, dict) and any(not isinstance(v, str) for v in value.values()):
            # real files hold numbers here; stock transformers refuses them
            warnings.warn(
                f"id2label has labels that are not text ({value}); they were turned into text. Pass "
                "id2label={0: 'first class', 1: 'second class', ...}.",
                UserWarning,
            )
            value = {index: str(label) for index, label in value.items()}
        super().__setattr__(name, value)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _read_own_block(self, block: dict) -> None:
        for name, value in block.items():
            if name not in _OWN_FIELDS:
                warnings.warn(f"hf_detr.{name} in the configuration file is not known to this version; it is ignored.")
            else:
                setattr(self, name, value)

    def _take_backbone(
        self, backbone: str | None, use_timm_backbone: bool | None, backbone_kwargs: dict | None
    ) -> None:
        """Turns the keys of every generation into `backbone_config`, without opening a connection for timm names."""
        backbone_kwargs = dict(backbone_kwargs or {})
        given = self.backbone_config
        if given is not None:
            if backbone is not None:
                raise ValueError(f"Both backbone_config and backbone={backbone!r} were given; keep one of them.")
            self.backbone_config = _as_config(given)
            is_timm = self.backbone_config.model_type == "timm_backbone"
            if use_timm_backbone and not is_timm:
                raise ValueError(
                    f"use_timm_backbone=True contradicts a backbone_config of model_type "
                    f"{self.backbone_config.model_type!r}; drop use_timm_backbone, or name a timm network by backbone."
                )
        elif use_timm_backbone is False:
            self.backbone_config = _transformers_backbone(backbone, backbone_kwargs)
            is_timm, backbone_kwargs = False, {}
        else:
            self.backbone_config = _as_config({"model_type": "timm_backbone", "backbone": backbone or "resnet50"})
            self.backbone_config.num_channels = self.num_channels
            # ResNet's four stages. Networks of another depth are met when they are built (see nn.backbone).
            self.backbone_config.out_indices = [1, 2, 3, 4]
            is_timm = True
        if is_timm:
            self._apply_timm_kwargs(backbone_kwargs)
        elif backbone_kwargs:
            raise ValueError(
                f"backbone_kwargs={backbone_kwargs} only applies to timm networks; set them in backbone_config instead."
            )

    def _apply_timm_kwargs(self, backbone_kwargs: dict) -> None:
        timm_config = self.backbone_config
        for name, target in (
            ("in_chans", "num_channels"),
            ("num_channels", "num_channels"),
            ("out_indices", "out_indices"),
        ):
            if (value := backbone_kwargs.pop(name, None)) is not None:
                setattr(timm_config, target, list(value) if name == "out_indices" else value)
        for ignored in ("features_only", "pretrained"):  # set by the model itself
            backbone_kwargs.pop(ignored, None)
        if (output_stride := backbone_kwargs.pop("output_stride", None)) is not None:
            timm_config.output_stride = output_stride
        if self.dilation and getattr(timm_config, "output_stride", None) is None:
            timm_config.output_stride = 16
        if backbone_kwargs:
            self.timm_kwargs = {**(self.timm_kwargs or {}), **backbone_kwargs}

    # -- checking ---------------------------------------------------------------------------------------------------

    def _check_labels(self) -> None:
        """Files hold what their authors wrote: odd label maps are kept and named in a warning."""
        odd = []
        if sorted(self.id2label) != list(range(len(self.id2label))):
            odd.append(f"class ids {sorted(self.id2label)} instead of 0 to {len(self.id2label) - 1}")
        if len(set(self.id2label.values())) < len(self.id2label) and set(self.id2label.values()) != {"N/A"}:
            names = [label for label in self.id2label.values() if label != "N/A"]  # COCO's unused ids share a name
            if len(set(names)) < len(names):
                odd.append("two classes of one name")
        expected = {label: index for index, label in self.id2label.items()}
        if self.label2id is None or odd:
            self.label2id = expected
        elif {str(label): int(index) for label, index in self.label2id.items()} != expected:
            odd.append("a label2id that is not the inverse of id2label (rebuilt from id2label)")
            self.label2id = expected
        if odd:
            warnings.warn(
                f"id2label has {', and '.join(odd)}. The model scores classes 0 to {self.num_labels - 1}; pass "
                "id2label={0: 'first class', 1: 'second class', ...} and annotate with the same ids.",
                UserWarning,
            )

    def check(self) -> None:
        """Raises ValueError where fields are impossible or contradict each other. A model checks its configuration
        again when it is built, since fields may have been set since."""
        if self.backbone_config is None:  # set to None since: start over from the old keys
            take = {
                name: self.__dict__.pop(name, None) for name in ("backbone", "use_timm_backbone", "backbone_kwargs")
            }
            self._take_backbone(**take)
        for name in ("num_queries", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "num_channels", "d_model",
                     "encoder_attention_heads", "decoder_attention_heads"):  # fmt: skip
            _require(name, getattr(self, name), "a whole number of at least 1", lambda v: _is_int(v) and v >= 1)
        _require("query_groups", self.query_groups, "a whole number of at least 1", lambda v: _is_int(v) and v >= 1)
        for name in ("encoder_layers", "denoising_queries", "chunk_size_backbone"):
            _require(name, getattr(self, name), "a whole number of at least 0", lambda v: _is_int(v) and v >= 0)
        _require("encoder_auxiliary_loss", self.encoder_auxiliary_loss, "True or False", lambda v: isinstance(v, bool))
        for name in ("denoising_box_noise", "denoising_label_noise"):
            _require(name, getattr(self, name), "a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1)
        _require("num_labels", self.num_labels, "at least 1 class", lambda v: v >= 1)
        for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
            _require(name, getattr(self, name), "a chance in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
        costs = ("class_cost", "bbox_cost", "giou_cost")
        for name in (*costs, "bbox_loss_coefficient", "giou_loss_coefficient", "mask_loss_coefficient",
                     "dice_loss_coefficient", "eos_coefficient"):  # fmt: skip
            _require(name, getattr(self, name), "a number of at least 0", lambda v: _is_number(v) and v >= 0)
        if not any(getattr(self, name) for name in costs):
            raise ValueError(
                f"{', '.join(costs)} are all 0, so that any matching is as good; set at least one above 0."
            )
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_attention_heads")
            if self.d_model % heads:
                raise ValueError(
                    f"d_model={self.d_model} does not divide among {part}_attention_heads={heads}; "
                    f"take d_model={_next_multiple(self.d_model, heads)} or another number of heads."
                )
        if self.position_embedding_type not in _POSITION_EMBEDDINGS:
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r} is not one of {_POSITION_EMBEDDINGS}."
            )
        step = 4 if self.position_embedding_type == "sine" else 2  # half for each axis, sines and cosines in pairs
        if self.d_model % step:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of {step} for {self.position_embedding_type} positions; "
                f"take {_next_multiple(self.d_model, step)}."
            )
        if self.activation_function not in ACT2FN:
            near = difflib.get_close_matches(str(self.activation_function), ACT2FN, n=3)
            raise ValueError(
                f"activation_function={self.activation_function!r} is not known to transformers"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "; 'relu' is the paper's.")
            )
        until = self.freeze_backbone_until
        if not (until is None or isinstance(until, str) or (_is_int(until) and until >= 0)):
            raise ValueError(
                f"freeze_backbone_until={until!r} is neither a stage's name or index, nor 'auto', 'all' or None."
            )
        self._check_backbone()

    def _check_backbone(self) -> None:
        backbone = self.backbone_config
        is_timm = backbone.model_type == "timm_backbone"
        if is_timm and not backbone.backbone:
            raise ValueError("backbone_config names no network; set backbone_config['backbone'], e.g. 'resnet50'.")
        if self.timm_kwargs and not is_timm:
            raise ValueError(f"timm_kwargs={self.timm_kwargs} needs a timm backbone, not {backbone.model_type!r}.")
        if self.dilation and not is_timm:
            raise ValueError(
                f"dilation=True needs a timm backbone, not {backbone.model_type!r}; "
                "set dilation=False, or backbone='resnet50'."
            )
        stride = getattr(backbone, "output_stride", None) if is_timm else None
        if self.dilation and stride not in (8, 16):
            raise ValueError(
                f"dilation=True contradicts backbone_config.output_stride={stride}; set it to 16, or dilation=False."
            )
        channels = getattr(backbone, "num_channels", self.num_channels)
        if channels != self.num_channels:
            if self.num_channels != 3:
                raise ValueError(
                    f"num_channels={self.num_channels} contradicts backbone_config.num_channels={channels}; "
                    "set both to the channels of your images."
                )
            self.num_channels = channels  # only the backbone's was set

    # -- writing ----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return self._for_file(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        return self._for_file(super().to_diff_dict())

    def _for_file(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Moves what stock transformers does not know, or takes otherwise, into the block `hf_detr`."""
        if "hf_detr" not in fields:  # to_diff_dict has been through to_dict
            fields["hf_detr"] = {name: getattr(self, name) for name in _OWN_FIELDS}
        for name in _OWN_FIELDS:
            fields.pop(name, None)
        fields["auxiliary_loss"] = False
        return fields


def _as_config(backbone: dict | PreTrainedConfig) -> PreTrainedConfig:
    if isinstance(backbone, PreTrainedConfig):
        return backbone
    if not isinstance(backbone, dict):
        raise TypeError(f"backbone_config must be a configuration or a dict, not {type(backbone).__name__}.")
    model_type = backbone.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has model_type {model_type!r}; name 'timm_backbone' (with 'backbone': a timm network) "
            "or a backbone of transformers such as 'resnet'."
        )
    return CONFIG_MAPPING[model_type].from_dict(dict(backbone))


def _transformers_backbone(checkpoint: str | None, overrides: dict) -> PreTrainedConfig:
    """The AutoBackbone of a checkpoint (a folder or a Hub name), or stock's default when none is named."""
    if checkpoint is None:
        return CONFIG_MAPPING["resnet"](out_features=["stage4"], **overrides)
    return AutoConfig.from_pretrained(checkpoint, **overrides)


def _require(name: str, value: Any, expected: str, holds) -> None:
    if not holds(value):
        raise ValueError(f"{name}={value!r} is not {expected}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _next_multiple(value: int, step: int) -> int:
    return -(-value // step) * step
