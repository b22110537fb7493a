"""DetrConfig: every number that makes a DETR, checked when it is written down.

A configuration file is shared with stock transformers. Whatever that does not know lies in one block of the file,
`"hf_detr"`, so that stock reads the rest as its own. One key differs on purpose: stock's `auxiliary_loss` changes the
forward pass (it feeds each decoder layer the *normed* state of the one before), so `auxiliary_loss` is written as
false, which makes stock compute what this package computes, and its true value lies in the block.
"""

import difflib
import warnings
from os import PathLike
from typing import Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from .configuration.backbone import (
    apply_timm_kwargs,
    as_backbone_config,
    check_backbone,
    fields_of_file,
    timm_backbone,
    transformers_backbone,
)
from .configuration.checks import errors_name, is_int, is_label_map, is_number, next_multiple, require, require_counts

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
    "iou_aware_classification",
    "chunk_size_backbone",
    "chunk_size_masks",
    "mask_loss_resolution",
    "mask_loss_points",
    "mask_loss_on_padding",
    "freeze_detector",
    "label_ids_to_fuse",
)
_ALIASES = {  # views of others; a file that states both states the same
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
_MOST_LABELS = 1_000_000  # each gets a name
_POSITION_EMBEDDINGS = ("sine", "learned")
_MASK_LOSSES = ("image", "mask", "points")


class DetrConfig(PreTrainedConfig):
    """Configuration of all models (Carion et al., ECCV 2020; defaults are the paper's).

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
        backbone: a timm name ("resnet50"), or with `use_timm_backbone=False` a checkpoint of a transformers backbone,
            which is looked up for a call in Python and never for a file.
        use_timm_backbone: whether `backbone` names a timm network.
        backbone_kwargs: `out_indices`, `output_stride`, `in_chans`, or further arguments of `timm.create_model`.
        use_pretrained_backbone: start a fresh model from the backbone's published weights. Loading a full checkpoint
            never fetches them.

    Of this package:
        freeze_backbone_norms: run the backbone's batch norms as fixed affine maps (paper, A.4).
        freeze_backbone_until: the last stage that does not train: a stage's name ("layer1") or index, "all", None for
            none, or "auto": stem and first stage for ResNets (as published), nothing for others.
        chunk_size_backbone: at inference, the images that pass the backbone at a time, for less memory; 0 for all.
        timm_kwargs: further arguments of the timm network (`img_size`, `drop_path_rate`, ...), its architecture alone.

    Of this package, for masks:
        chunk_size_masks: at inference, the queries of each image that pass the mask head at a time, for less memory; 0
            for all.
        mask_loss_resolution: where predicted and true masks are compared: "image", every pixel of the image, as
            published; "mask", every cell of the predicted mask, a quarter of that in each direction; "points",
            `mask_loss_points` random locations of each mask.
        mask_loss_on_padding: count padding as pixels off the object, as the original does. Its checkpoints have it set.
        freeze_detector: train the mask head alone (the paper's second stage); see `DetrForSegmentation.from_detector`.
        label_ids_to_fuse: the classes of stuff, all segments of which are one in a panoptic result.

    Of this package, training-only losses, which change nothing at inference (all off, as in the paper):
        denoising_queries: noised copies of each target that the decoder learns to reconstruct; see `loss.denoising`.
        denoising_box_noise: how far they are moved and resized, in shares of the box.
        denoising_label_noise: chance that a copy's label is a random one.
        query_groups: 1, or how many groups of `num_queries` object queries train, each matched on its own.
        encoder_auxiliary_loss: every cell of the encoded feature map predicts its object; see `loss.encoder_loss`.
        iou_aware_classification: a matched query owes its class only as much as its box fits; see `loss.criterion`.

    Reading a configuration file, by `from_pretrained`, `from_json_file` or `from_dict`, runs no code and opens nothing
    but the file; what it does not know, it keeps as an attribute, as in Transformers.

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
    iou_aware_classification: bool = False
    chunk_size_backbone: int = 0
    chunk_size_masks: int = 25
    mask_loss_resolution: str = "image"
    mask_loss_points: int = 12544
    mask_loss_on_padding: bool = False
    freeze_detector: bool = False
    label_ids_to_fuse: list[int] | None = None

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
        self.dilation = False if self.dilation is None else self.dilation  # as stock writes it
        if (num_labels := kwargs.pop("num_labels", None)) is not None:
            if not (is_int(num_labels) and 1 <= num_labels <= _MOST_LABELS):
                raise ValueError(f"num_labels={num_labels!r} is not a whole number from 1 to {_MOST_LABELS:,}.")
            if self.id2label is not None and len(self.id2label) != num_labels:
                raise ValueError(
                    f"num_labels={num_labels} contradicts id2label, which names {len(self.id2label)} classes; "
                    "pass id2label alone."
                )
            kwargs["num_labels"] = num_labels
        self._take_backbone(
            backbone=kwargs.pop("backbone", None),
            use_timm_backbone=kwargs.pop("use_timm_backbone", None),
            backbone_kwargs=kwargs.pop("backbone_kwargs", None),
        )
        super().__post_init__(**kwargs)
        self._check_labels()
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and not (value is None or is_label_map(value)):
            raise ValueError(f"id2label={value!r} is not a dict {{0: 'first class', 1: 'second class', ...}}.")
        if name == "id2label" and value and any(not isinstance(v, str) for v in value.values()):
            # real files hold numbers here; stock transformers refuses them
            warnings.warn(
                f"id2label has labels that are not text ({value}); they were turned into text. Pass "
                "id2label={0: 'first class', 1: 'second class', ...}.",
                UserWarning,
            )
            value = {index: str(label) for index, label in value.items()}
        super().__setattr__(name, value)

    # -- reading ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args: Any, **kwargs: Any):
        """As in Transformers. ValueError, naming the checkpoint, for what makes no configuration."""
        with errors_name(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | PathLike) -> "DetrConfig":
        """As in Transformers. ValueError, naming the file, for what makes no configuration."""
        with errors_name(json_file):
            return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As in Transformers; fields that could open or run something else are left out (see `fields_of_file`)."""
        return super().from_dict(fields_of_file(config_dict, cls), **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike) -> dict[str, Any]:
        # Transformers follows some of a file's fields before `from_dict` sees them
        return fields_of_file(super()._dict_from_json_file(json_file), cls)

    def _read_own_block(self, block: dict) -> None:
        if not isinstance(block, dict):
            raise ValueError(f"hf_detr={block!r} is not an object of fields.")
        for name, value in block.items():
            if name not in _OWN_FIELDS:
                warnings.warn(f"hf_detr.{name} in the configuration file is not known to this version; it is ignored.")
            else:
                setattr(self, name, value)

    def _take_backbone(
        self, backbone: str | None, use_timm_backbone: bool | None, backbone_kwargs: dict | None
    ) -> None:
        """Turns the keys of every generation into `backbone_config`, without opening a connection for timm names."""
        if not (backbone_kwargs is None or isinstance(backbone_kwargs, dict)):
            raise ValueError(f"backbone_kwargs={backbone_kwargs!r} must be a dict of arguments, or None.")
        backbone_kwargs = dict(backbone_kwargs or {})
        if self.backbone_config is not None:
            if backbone is not None:
                raise ValueError(f"Both backbone_config and backbone={backbone!r} were given; keep one of them.")
            self.backbone_config = as_backbone_config(self.backbone_config)
        elif use_timm_backbone is False:
            self.backbone_config = transformers_backbone(backbone, backbone_kwargs)
            backbone_kwargs = {}
        else:
            self.backbone_config = timm_backbone(backbone, self.num_channels)
        model_type = self.backbone_config.model_type
        if model_type == "timm_backbone":
            backbone_kwargs = apply_timm_kwargs(self.backbone_config, backbone_kwargs)
            if self.dilation and getattr(self.backbone_config, "output_stride", None) is None:
                self.backbone_config.output_stride = 16
            if backbone_kwargs:
                self.timm_kwargs = {**(self.timm_kwargs or {}), **backbone_kwargs}
        elif use_timm_backbone:
            raise ValueError(
                f"use_timm_backbone=True contradicts a backbone_config of model_type {model_type!r}; drop "
                "use_timm_backbone, or name a timm network by backbone."
            )
        elif backbone_kwargs:
            raise ValueError(
                f"backbone_kwargs={backbone_kwargs} only applies to timm networks; set them in backbone_config instead."
            )

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
            old_keys = ("backbone", "use_timm_backbone", "backbone_kwargs")
            self._take_backbone(**{name: self.__dict__.pop(name, None) for name in old_keys})
        heads = ("encoder_attention_heads", "decoder_attention_heads")
        sizes = ("num_queries", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "num_channels", "d_model")
        sizes += ("mask_loss_points",)
        require_counts(self, (*sizes, *heads, "query_groups", "num_labels"), least=1)
        from_zero = ("encoder_layers", "denoising_queries", "chunk_size_backbone", "chunk_size_masks")
        require_counts(self, from_zero, least=0)
        flags = ("auxiliary_loss", "encoder_auxiliary_loss", "iou_aware_classification", "mask_loss_on_padding")
        flags += ("freeze_backbone_norms", "freeze_detector", "dilation")
        require(self, flags, "True or False", lambda v: isinstance(v, bool))
        noises = ("denoising_box_noise", "denoising_label_noise")
        require(self, noises, "a number in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)
        chances = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
        require(self, chances, "a chance in [0, 1)", lambda v: is_number(v) and 0 <= v < 1)
        costs = ("class_cost", "bbox_cost", "giou_cost")
        weights = tuple(f"{name}_coefficient" for name in ("bbox_loss", "giou_loss", "mask_loss", "dice_loss", "eos"))
        require(self, costs + weights, "a number of at least 0", lambda v: is_number(v) and v >= 0)
        if not any(getattr(self, name) for name in costs):
            raise ValueError(f"{', '.join(costs)} are all 0: any matching is as good; set at least one above 0.")
        for name in heads:
            if self.d_model % (number := getattr(self, name)):
                raise ValueError(
                    f"d_model={self.d_model} does not divide among {name}={number}; "
                    f"take d_model={next_multiple(self.d_model, number)} or another number of heads."
                )
        require(self, ["position_embedding_type"], f"one of {_POSITION_EMBEDDINGS}", _POSITION_EMBEDDINGS.__contains__)
        step = 4 if self.position_embedding_type == "sine" else 2  # half for each axis, sines and cosines in pairs
        if self.d_model % step:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of {step} for {self.position_embedding_type} positions; "
                f"take {next_multiple(self.d_model, step)}."
            )
        if self.activation_function not in ACT2FN:
            near = difflib.get_close_matches(str(self.activation_function), ACT2FN, n=3)
            raise ValueError(
                f"activation_function={self.activation_function!r} is not known to transformers"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "; 'relu' is the paper's.")
            )
        require(
            self, ["freeze_backbone_until"], "a stage's name or index, 'auto', 'all' or None",
            lambda v: v is None or isinstance(v, str) or (is_int(v) and v >= 0),
        )  # fmt: skip
        require(self, ["mask_loss_resolution"], f"one of {_MASK_LOSSES}", _MASK_LOSSES.__contains__)
        require(
            self, ["label_ids_to_fuse"], f"None or a list of class ids from 0 to {self.num_labels - 1}",
            lambda v: v is None or (isinstance(v, list) and all(is_int(i) and 0 <= i < self.num_labels for i in v)),
        )  # fmt: skip
        check_backbone(self)

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
