"""DETR in the order of the data: outputs, what the models share, `DetrModel`, `DetrForObjectDetection`.

Parameter names are the names in the Hub's files, so loading and saving map nothing. The forward pass reads nothing back
to the host; the loss does so once, for the matching.
"""

import logging
import warnings
from contextvars import ContextVar
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .checkpoints.card_facts import card_facts
from .checkpoints.files import check_weights
from .checkpoints.model_card import model_card
from .checkpoints.original import load_original
from .checkpoints.surgery import resized_embedding, shared_classes, transferred_embedding, transferred_linear
from .configuration_detr import DetrConfig
from .loss import CellPredictions, Matches, NoisedTargets, SetCriterion, Targets, noise_targets, pack_targets
from .nn.auxiliary import ExtraQueries, TrainingOnly
from .nn.backbone import ConvEncoder, build_timm_backbone, build_transformers_backbone
from .nn.heads import BoxHead
from .nn.initialization import initialize
from .nn.masks import additive_mask, cells_on_image, query_mask
from .nn.position_embedding import LearnedPositionEmbedding, SinePositionEmbedding, cell_centres_xy
from .nn.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, eager_attention

# B images of height x width, H x W cells of the feature map, K = HW of them in a row, L decoder layers, Q queries,
# D channels, C classes

__all__ = ["DetrForObjectDetection", "DetrModel", "DetrModelOutput", "DetrObjectDetectionOutput", "DetrPreTrainedModel"]

logger = logging.getLogger(__name__)

# While a checkpoint is being loaded, the backbone's published weights are not needed: it brings its own.
loading_checkpoint: ContextVar[bool] = ContextVar("loading_checkpoint", default=False)


@dataclass
class DetrModelOutput(Seq2SeqModelOutput):
    """Output of `DetrModel`.

    Attributes:
        last_hidden_state: (B, Q, D) state of each query after the last decoder layer, normed.
        decoder_hidden_states: L + 1 of (B, Q, D): the states before each layer and `last_hidden_state`.
        decoder_attentions, cross_attentions: L of (B, heads, Q, Q) and of (B, heads, Q, HW).
        encoder_last_hidden_state: (B, HW, D) the encoded feature map, its rows one after the other.
        encoder_hidden_states: encoder layers + 1 of (B, HW, D).
        encoder_attentions: encoder layers of (B, heads, HW, HW).
        intermediate_hidden_states: (L, B, Q, D) states after each decoder layer, normed, with `auxiliary_loss`.
        cell_centres_xy: (B or 1, HW, 2) centres of the feature map's cells in [0, 1] of the visible image, -1 on
            padding; only in training with `encoder_auxiliary_loss`.
        feature_maps: the backbone's maps but the last, finest first, then that one projected (B, D, H, W), where the
            model was built for more than one.
    """

    intermediate_hidden_states: Tensor | None = None
    cell_centres_xy: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None


@dataclass
class DetrObjectDetectionOutput(ModelOutput):
    """Output of `DetrForObjectDetection`; hidden states and attentions as in `DetrModelOutput`.

    Attributes:
        loss: () the weighted sum of all layers' losses, where `labels` were given.
        loss_dict: its parts, unweighted, and two errors that do not train; see `loss.SetCriterion`.
        logits: (B, Q, C + 1) class scores before the softmax; the last class is "no object".
        pred_boxes: (B, Q, 4) (centre x, centre y, width, height) in [0, 1] of the visible image, padding not counted.
        auxiliary_outputs: with `auxiliary_loss` and `labels`, a dict of `logits` and `pred_boxes` for each decoder
            layer but the last.
        last_hidden_state: (B, Q, D), from which heads and others read.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class DetrDetectionForMasks(DetrObjectDetectionOutput):
    """What `DetrForSegmentation` reads of its detector as well.

    Attributes:
        feature_maps: as in `DetrModelOutput`.
        matches: the last layer's assignment, where labels were given.
        num_boxes: what that loss's sums over objects were divided by.
    """

    feature_maps: tuple[Tensor, ...] | None = None
    matches: Matches | None = None
    num_boxes: Tensor | float | None = None


class DetrPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by the models."""

    config_class = DetrConfig
    config: DetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["ConvEncoder", "EncoderLayer", "DecoderLayer", "MaskHead"]  # noqa: RUF012
    # counters of live batch norms, which some files hold, and parameters that only a training's checkpoint holds
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked$", r"^(detr\.)?training_only\."]  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [r"^(detr\.)?training_only\."]  # noqa: RUF012

    def __init__(self, config: DetrConfig, *inputs, **kwargs):
        config.check()  # fields may have been set since it was made
        super().__init__(config, *inputs, **kwargs)
        self.register_load_state_dict_post_hook(_ignore_batch_counters)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in Transformers. The backbone's weights come from the checkpoint alone: nothing else is opened.
        ValueError, naming the file, for weights in a folder that are cut off, or lie outside of it."""
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if source is not None and Path(source).is_dir():
            check_weights(Path(source, kwargs.get("subfolder") or ""))
        token = loading_checkpoint.set(True)
        try:
            loaded = super().from_pretrained(*args, **kwargs)
        finally:
            loading_checkpoint.reset(token)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        if "DetrForSegmentation" in (model.config.architectures or ()) and cls.__name__ != "DetrForSegmentation":
            raise ValueError(
                f"{args[0] if args else 'the checkpoint'} is of a DetrForSegmentation, whose weights have other names; "
                "its detector is DetrForSegmentation.from_pretrained(...).detr."
            )
        # loading makes new parameters, all of which would train
        model.base_model.backbone.conv_encoder.freeze(model.config.freeze_backbone_until)
        return loaded

    def save_pretrained(self, *args, **kwargs):
        """As in Transformers. Folded norms are unfolded for the file, which is the same in either case."""
        num_folded = self.unfold_norms()
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            if num_folded:
                self.fold_norms()

    def get_input_embeddings(self) -> None:
        """None: images are not tokens. Accelerate's FSDP asks."""
        return

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: bool | str | None = None, **kwargs
    ) -> str:
        """As in Transformers. A repository without a README.md gets this package's model card first; its classes and
        sizes are known here, what it was trained on is not: `hf-detr train` and `DetrTrainer` write fuller ones."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md"):
            # not by ModelCard: older clients validate at huggingface.co, wherever HF_ENDPOINT points
            card = model_card(card_facts(self, repo_id)).encode()
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)
        return super().push_to_hub(repo_id, private=private, token=token, **kwargs)

    def freeze_backbone(self, until: str | int | None = "all") -> None:
        """Afterwards exactly the backbone's parameters up to and including a stage are frozen: a stage's name or index,
        "all", or None for none. Call it before the optimizer is made. ValueError for an unknown stage."""
        self.base_model.backbone.conv_encoder.freeze(until)
        self.config.freeze_backbone_until = until

    def unfreeze_backbone(self) -> None:
        """Trains all parameters of the backbone. Frozen norms stay frozen: see `unfreeze_norms`."""
        self.freeze_backbone(until=None)

    def resize_queries(self, num_queries: int) -> None:
        """Takes another number of object queries: the first ones stay, further ones start from N(0, 1). Call it before
        the optimizer is made. Raises ValueError for less than 1."""
        if num_queries < 1:
            raise ValueError(f"num_queries={num_queries} must be at least 1.")
        model = self.base_model
        model.query_position_embeddings = resized_embedding(model.query_position_embeddings, num_queries)
        self.config.num_queries = num_queries

    def freeze_norms(self) -> None:
        """Runs the backbone's batch norms as fixed affine maps. Call it before the optimizer is made."""
        self.base_model.backbone.conv_encoder.freeze_norms()
        self.config.freeze_backbone_norms = True

    def unfreeze_norms(self) -> None:
        """Lets the batch norms of all stages that train learn: for backbones from random weights. Call it before the
        optimizer is made."""
        encoder = self.base_model.backbone.conv_encoder
        encoder.unfreeze_norms()
        encoder.freeze(self.config.freeze_backbone_until)
        self.config.freeze_backbone_norms = False

    def fold_norms(self) -> int:
        """Folds the backbone's frozen norms into its convolutions, for faster inference; returns how many.

        Logits stay the same but for rounding. Take it back with `unfold_norms` before training or adding adapters;
        `save_pretrained` writes the same files either way. Pairs with hooks, adapters or weights that are not in memory
        are left as they are.
        """
        return self.base_model.backbone.conv_encoder.fold_norms()

    def unfold_norms(self) -> int:
        """Takes `fold_norms` back, exactly; returns how many were folded."""
        return self.base_model.backbone.conv_encoder.unfold_norms()

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module)


def _ignore_batch_counters(module: nn.Module, incompatible_keys) -> None:
    incompatible_keys.unexpected_keys[:] = [
        key for key in incompatible_keys.unexpected_keys if not key.endswith("num_batches_tracked")
    ]


class _Backbone(nn.Module):
    """Gives the network the name it has in the Hub's files: `backbone.conv_encoder.model`."""

    def __init__(self, conv_encoder: ConvEncoder):
        super().__init__()
        self.conv_encoder = conv_encoder

    @property
    def intermediate_channel_sizes(self) -> list[int]:
        return self.conv_encoder.intermediate_channel_sizes

    @property
    def model(self) -> nn.Module:
        return self.conv_encoder.model


class DetrModel(DetrPreTrainedModel):
    """Backbone, encoder and decoder: from images to the states of the object queries (paper, figure 2).

    `num_feature_maps`: how many of the backbone's maps are computed; masks need four.
    """

    def __init__(self, config: DetrConfig, num_feature_maps: int = 1):
        super().__init__(config)
        self.backbone = _Backbone(_make_backbone(config, num_feature_maps))
        positions = SinePositionEmbedding if config.position_embedding_type == "sine" else LearnedPositionEmbedding
        self.position_embedding = positions(config.d_model)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        channels = self.backbone.intermediate_channel_sizes[-1]
        self.input_projection = nn.Conv2d(channels, config.d_model, kernel_size=1)
        common = {
            "d_model": config.d_model,
            "attention_dropout": config.attention_dropout,
            "dropout": config.dropout,
            "activation_dropout": config.activation_dropout,
        }

        def layers(layer: type[nn.Module], count: int, num_heads: int, ffn_dim: int) -> list[nn.Module]:
            # an activation of its own for each layer, so that a hook on it hears one layer
            activations = (ACT2FN[config.activation_function] for _ in range(count))
            return [layer(num_heads=num_heads, ffn_dim=ffn_dim, activation=one, **common) for one in activations]

        of_encoder = (config.encoder_layers, config.encoder_attention_heads, config.encoder_ffn_dim)
        of_decoder = (config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder = Encoder(layers(EncoderLayer, *of_encoder), layerdrop=config.encoder_layerdrop)
        self.decoder = Decoder(
            layers(DecoderLayer, *of_decoder), d_model=config.d_model, layerdrop=config.decoder_layerdrop
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        extra_queries: ExtraQueries | None = None,
    ) -> DetrModelOutput | tuple[Tensor, ...]:
        """Images to query states.

        Args:
            pixel_values: (B, C, height, width), normalised; padded images lie at the top left, padding is 0.
            pixel_mask: (B, height, width), 1 or True on image, 0 on padding. Leave it out where nothing is padded: no
                mask is then built or attended with.
            decoder_attention_mask: (B, Q), 1 for queries that others may see, 0 for the rest; or (B, Q, Q), 1 where a
                query may see another.
            encoder_outputs: what an earlier call gave as encoder outputs; backbone and encoder still give positions.
            inputs_embeds: (B, HW, D) a projected, flattened, square feature map, instead of `pixel_values`.
            decoder_inputs_embeds: (B, Q, D) contents of the queries, zeros unless given.
            output_attentions, output_hidden_states, return_dict: as in Transformers.
            extra_queries: further queries of a training step; every (.., Q, ..) that comes out then has them as well.

        Raises:
            ValueError: neither or both inputs, or shapes that do not fit the model or each other.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        if inputs_embeds is None:
            *maps, projected = self._feature_maps(pixel_values, pixel_mask)
            height, width = projected.shape[-2:]
            features = projected.flatten(2).transpose(1, 2)  # (B, HW, D)
        else:
            maps, features, height, width = [], *self._given_features(pixel_values, inputs_embeds)
        cell_mask = cells_on_image(pixel_mask, height, width)
        implementation = self._attention_implementation(output_attentions, features.device)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        positions = self.position_embedding(height, width, cell_mask, features.device).to(features.dtype)
        memory_mask = self._memory_mask(cell_mask, features, features, implementation)

        encoder_states, encoder_attentions = None, None
        if encoder_outputs is None:
            memory, encoder_states, encoder_attentions = self.encoder(features, positions, memory_mask, attend)
        else:
            memory, encoder_states, encoder_attentions = _unpack_encoder_outputs(encoder_outputs)

        numbers = torch.arange(config.num_queries, device=memory.device)
        query_positions = self.query_position_embeddings(numbers).to(memory.dtype)  # it differs under autocast
        query_positions = query_positions.expand(memory.shape[0], -1, -1)
        queries = torch.zeros_like(query_positions) if decoder_inputs_embeds is None else decoder_inputs_embeds
        queries_mask = query_mask(decoder_attention_mask, queries, extra_queries)
        if extra_queries is not None:
            queries = torch.cat((queries, extra_queries.contents.to(queries.dtype)), dim=1)
            query_positions = torch.cat((query_positions, extra_queries.positions.to(queries.dtype)), dim=1)
        states, states_before, self_attentions, cross_attentions = self.decoder(
            queries,
            query_positions,
            memory,
            positions,
            queries_mask,
            self._memory_mask(cell_mask, queries, memory, implementation),
            attend,
        )

        intermediate = None
        if config.auxiliary_loss:
            intermediate = self.decoder.layernorm(torch.stack(states))  # (L, B, Q, D)
            last = intermediate[-1]
        else:
            last = self.decoder.layernorm(states[-1])

        def hidden(before: list[Tensor] | None, final: Tensor) -> tuple[Tensor, ...] | None:
            return (*before, final) if output_hidden_states and before is not None else None

        def weights(attentions: list[Tensor] | None) -> tuple[Tensor, ...] | None:
            return tuple(attentions) if output_attentions and attentions is not None else None

        cells_train = self.training and config.encoder_auxiliary_loss
        output = DetrModelOutput(
            last_hidden_state=last,
            decoder_hidden_states=hidden(states_before, last),
            decoder_attentions=weights(self_attentions),
            cross_attentions=weights(cross_attentions),
            encoder_last_hidden_state=memory,
            encoder_hidden_states=hidden(encoder_states, memory),
            encoder_attentions=weights(encoder_attentions),
            intermediate_hidden_states=intermediate,
            cell_centres_xy=cell_centres_xy(height, width, cell_mask, features.device) if cells_train else None,
            feature_maps=(*maps, projected) if maps else None,
        )
        return output if return_dict else output.to_tuple()

    def _attention_implementation(self, output_attentions: bool, device: torch.device) -> str:
        implementation = self.config._attn_implementation
        if output_attentions:
            return "eager"  # the others do not return their weights
        if implementation == "sdpa" and device.type == "cpu" and torch.is_grad_enabled():
            # The fused kernel's backward pass loses digits on the CPU: gradient norms of the golden cases are off by up
            # to 2e-3 there, by 4e-5 with the attention written out.
            return "eager"
        return implementation

    def _memory_mask(self, cell_mask: Tensor | None, queries: Tensor, memory: Tensor, implementation: str):
        """Cells on the image (B, H, W) -> the mask that `queries` (B, Q, D) attend to `memory` (B, K, D) with, in the
        form that the implementation takes; None where nothing is padded."""
        if cell_mask is None:
            return None
        cells = cell_mask.flatten(1)
        if implementation.startswith(("flash", "flex")):
            return create_bidirectional_mask(self.config, queries, cells, encoder_hidden_states=memory)
        return additive_mask(cells[:, None, None], queries.dtype)  # (B, 1, 1, K)

    def _feature_maps(self, pixel_values: Tensor | None, pixel_mask: Tensor | None) -> list[Tensor]:
        """-> the backbone's maps, finest first; the last projected, (B, D, H, W)."""
        if pixel_values is None:
            raise ValueError("Give pixel_values, or inputs_embeds in their place.")
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be a floating-point tensor of shape (images, {channels}, height, width), not "
                f"{pixel_values.dtype} {tuple(pixel_values.shape)}; the image processor makes it, and num_channels of "
                "the configuration sets the channels."
            )
        if pixel_mask is not None and pixel_mask.shape != (pixel_values.shape[0], *pixel_values.shape[2:]):
            raise ValueError(
                f"pixel_mask must have the shape {(pixel_values.shape[0], *pixel_values.shape[2:])} of the images, not "
                f"{tuple(pixel_mask.shape)}."
            )
        pixel_values = pixel_values.to(_dtype(self.backbone, pixel_values.dtype))
        *maps, last = self.backbone.conv_encoder(pixel_values, self.config.chunk_size_backbone)
        return [*maps, self.input_projection(last)]

    def _given_features(self, pixel_values: Tensor | None, inputs_embeds: Tensor) -> tuple[Tensor, int, int]:
        if pixel_values is not None:
            raise ValueError("Both pixel_values and inputs_embeds were given; keep one of them.")
        side = int(inputs_embeds.shape[1] ** 0.5) if inputs_embeds.ndim == 3 else 0
        if inputs_embeds.ndim != 3 or side * side != inputs_embeds.shape[1]:
            raise ValueError(
                f"inputs_embeds must be a square feature map of shape (images, side * side, {self.config.d_model}), "
                f"not {tuple(inputs_embeds.shape)}: the sides of another map do not follow from it."
            )
        return inputs_embeds, side, side


def _make_backbone(config: DetrConfig, num_maps: int) -> ConvEncoder:
    backbone = config.backbone_config
    on_real_device = torch.empty(0).device.type != "meta"
    pretrained = config.use_pretrained_backbone and on_real_device and not loading_checkpoint.get()
    if backbone.model_type == "timm_backbone":
        encoder = build_timm_backbone(
            backbone.backbone,
            in_chans=config.num_channels,
            out_indices=backbone.out_indices,
            output_stride=getattr(backbone, "output_stride", None),
            pretrained=pretrained,
            timm_kwargs=config.timm_kwargs,
            num_maps=num_maps,
        )
    else:
        name = (backbone.name_or_path or None) if pretrained else None
        encoder = build_transformers_backbone(backbone, name, num_maps)
    num_norms = encoder.freeze_norms() if config.freeze_backbone_norms else 0
    num_frozen = encoder.freeze(config.freeze_backbone_until)
    if (num_norms or num_frozen) and not pretrained and not loading_checkpoint.get() and on_real_device:
        warnings.warn(
            f"The backbone starts from random weights, with {num_norms} frozen norms and {num_frozen} frozen "
            "parameters that can never learn. Set use_pretrained_backbone=True, or freeze_backbone_norms=False and "
            "freeze_backbone_until=None; ignore this if you load weights into the model next.",
            UserWarning,
        )
    return encoder


def _unpack_encoder_outputs(outputs: BaseModelOutput | tuple[Tensor, ...]):
    """-> memory, the states before each layer, attentions."""
    if not isinstance(outputs, BaseModelOutput):
        names = ("last_hidden_state", "hidden_states", "attentions")
        outputs = BaseModelOutput(**dict(zip(names, outputs, strict=False)))
    before = None if outputs.hidden_states is None else list(outputs.hidden_states[:-1])
    return outputs.last_hidden_state, before, outputs.attentions


class DetrModelWithClasses(DetrPreTrainedModel):
    """What the models that are trained share: loading with other classes, and loading the original's files."""

    accepts_loss_kwargs = True  # a Trainer may pass num_items_in_batch
    _has_masks = False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in Transformers. With other classes (`id2label=`, or `num_labels=`) it keeps what can be kept of the class
        head, and logs it: see `set_classes`. `ignore_mismatched_sizes` is not needed for that."""
        id2label, num_labels = kwargs.pop("id2label", None), kwargs.pop("num_labels", None)
        if id2label is not None and num_labels not in (None, len(id2label)):
            raise ValueError(f"num_labels={num_labels} contradicts id2label, which names {len(id2label)} classes.")
        if id2label is not None or num_labels is not None:
            kwargs.pop("label2id", None)  # follows from id2label
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._start_groups()
        if id2label is not None:
            model.set_classes(id2label)
        elif num_labels not in (None, model.config.num_labels):
            model.set_classes({index: f"LABEL_{index}" for index in range(num_labels)})
        return loaded

    @classmethod
    def from_original(cls, path: str | PathLike, config: DetrConfig | None = None) -> "DetrModelWithClasses":
        """A model from a checkpoint of the original DETR (`detr-r50-e632da11.pth`, `detr-r50-panoptic-00ce5173.pth`),
        in eval mode.

        Args:
            path: the `.pth`. Only tensors and plain values are unpickled.
            config: needed where the sizes of the tensors do not tell the architecture; see `checkpoints.original`.

        Raises:
            FileNotFoundError, ValueError: no such file, not such a checkpoint, or one that does not fit `config`.
        """
        config, weights = load_original(path, config, with_masks=cls._has_masks)
        token = loading_checkpoint.set(True)
        try:
            model = cls(config)
        finally:
            loading_checkpoint.reset(token)
        problems = model.load_state_dict(weights, strict=False)
        if problems.missing_keys or problems.unexpected_keys:
            raise ValueError(
                f"{path} does not fit the configuration: it lacks {problems.missing_keys[:5]} and has "
                f"{problems.unexpected_keys[:5]} in excess (the first five of each)."
            )
        return model.eval()


class DetrForObjectDetection(DetrModelWithClasses):
    """DETR: for each object query a class or "no object", and a box (Carion et al., ECCV 2020).

    With `labels` it returns the loss, matching included, so that a plain `Trainer` trains it. `num_feature_maps` is
    more than 1 in `DetrForSegmentation`.
    """

    def __init__(self, config: DetrConfig, num_feature_maps: int = 1):
        super().__init__(config)
        self.model = DetrModel(config, num_feature_maps)
        self.class_labels_classifier = nn.Linear(config.d_model, config.num_labels + 1)  # and "no object"
        self.bbox_predictor = BoxHead(config.d_model)
        self.training_only = TrainingOnly.from_config(config)
        self.post_init()
        if self.device.type != "meta":
            self._start_groups()
        self._leave_training_only_out_of_files()

    @property
    def criterion(self) -> SetCriterion:
        """The loss, made from the configuration as it is now; it has no parameters."""
        return SetCriterion.from_config(self.config)

    @torch.no_grad()
    def set_classes(self, id2label: dict[int, str]) -> list[str]:
        """Makes the class head for other classes. Call it before the optimizer is made.

        Kept are the row of "no object" and those of all classes that had the same name; the others start afresh.
        Returns the names that were kept, and logs them. Raises ValueError for ids other than 0, 1, 2, ...
        """
        id2label = {int(index): str(name) for index, name in id2label.items()}
        if not id2label or sorted(id2label) != list(range(len(id2label))):
            raise ValueError(f"id2label must name the classes 0, 1, 2, ... without gaps, not {sorted(id2label)}.")
        config, old = self.config, self.class_labels_classifier
        if id2label != config.id2label:
            shared = shared_classes(config.id2label, id2label)
            count = len(id2label)
            rows = {**shared, count: old.out_features - 1}  # "no object" comes last
            fused = set(config.label_ids_to_fuse or ())
            config.label_ids_to_fuse = [new for new, kept in shared.items() if kept in fused] or None
            self.class_labels_classifier = transferred_linear(old, rows, count + 1)
            head, queries = (getattr(self.training_only, name, None) for name in ("encoder_head", "queries"))
            if head is not None:
                head.classifier = transferred_linear(head.classifier, rows, count + 1)
            if queries is not None and queries.label_contents is not None:
                queries.label_contents = transferred_embedding(queries.label_contents, shared, count)
            config.id2label, config.label2id = id2label, {name: index for index, name in id2label.items()}
        else:
            shared = {index: index for index in id2label}
        kept = [id2label[index] for index in sorted(shared)]
        fresh = [name for index, name in id2label.items() if index not in shared]
        logger.warning(
            'Class head: kept "no object" and %d of %d classes (%s); %d start afresh (%s).',
            len(kept), len(id2label), _shorten(kept), len(fresh), _shorten(fresh),
        )  # fmt: skip
        return kept

    @torch.no_grad()
    def set_training_only(
        self,
        *,
        denoising_queries: int | None = None,
        query_groups: int | None = None,
        encoder_auxiliary_loss: bool | None = None,
        iou_aware_classification: bool | None = None,
    ) -> None:
        """Changes which training-only parts and losses there are; what is left out stays, and so do weights that are
        there already. Call it before the optimizer is made. New groups start from the object queries as they are. See
        `DetrConfig`; ValueError likewise."""
        config = self.config
        changes = {
            "denoising_queries": denoising_queries,
            "query_groups": query_groups,
            "encoder_auxiliary_loss": encoder_auxiliary_loss,
            "iou_aware_classification": iou_aware_classification,
        }
        before = {name: getattr(config, name) for name in changes}
        for name, value in changes.items():
            setattr(config, name, before[name] if value is None else value)
        try:
            config.check()
        except ValueError:
            for name, value in before.items():
                setattr(config, name, value)
            raise
        old, self.training_only = self.training_only, TrainingOnly.from_config(config)
        if self.training_only is not None:
            self.training_only.to(self.device, self.dtype).train(self.training)
            self.training_only.apply(self._init_weights)
            self.training_only.keep_parts_of(old, config.num_queries)
            self._start_groups()
        self._leave_training_only_out_of_files()

    set_training_help = set_training_only  # its name in 0.1

    def _start_groups(self) -> None:
        if self.training_only is not None and self.training_only.queries is not None:
            self.training_only.queries.start_groups(self.model.query_position_embeddings.weight)

    def _leave_training_only_out_of_files(self) -> None:
        """What `save_pretrained` writes is a plain DETR. Checkpoints to go on from keep the rest beside it:
        `state_dict()` has it, and `DetrTrainer` writes it into a file of its own."""
        names = () if self.training_only is None else self.training_only.state_dict()
        self._keys_to_ignore_on_save = {f"training_only.{name}" for name in names}

    def resize_queries(self, num_queries: int) -> None:
        super().resize_queries(num_queries)
        if self.config.query_groups > 1:
            self.set_training_only()  # groups of the new number

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_images_in_batch: Tensor | int | None = None,
        num_matched_in_batch: Tensor | int | None = None,
    ) -> DetrObjectDetectionOutput | tuple[Tensor, ...]:
        """Images to detections, and to the loss where there are labels.

        Args:
            labels: one dict per image: `class_labels` (T,) int64 in [0, C), and `boxes` (T, 4) (centre x, centre y,
                width, height) in [0, 1] of the visible image. T may be 0. The image processor makes them.
            num_items_in_batch: the *boxes* of the whole optimizer step where several forward passes make one.
            num_images_in_batch, num_matched_in_batch: its images, and those of its boxes that have a query; see
                `loss.SetCriterion`.
            pixel_values and others: see `DetrModel.forward`.

        Raises:
            TypeError, ValueError: inputs or labels that do not fit; the message says where, and the remedy.
        """
        config = self.config
        noised, extra_queries = None, None
        if labels is not None:
            images = inputs_embeds if pixel_values is None else pixel_values
            if not isinstance(labels, Targets):
                device = getattr(images, "device", "cpu")
                labels = pack_targets(labels, len(labels if images is None else images), device)
            if self.training and self.training_only is not None and self.training_only.queries is not None:
                noised, extra_queries = self._extra_queries(labels)
        outputs = self.model(
            pixel_values,
            pixel_mask=pixel_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            extra_queries=extra_queries,
        )
        losses, auxiliary_outputs = None, None
        if labels is None:
            logits, pred_boxes = self._heads(outputs.last_hidden_state)
        else:
            states = outputs.intermediate_hidden_states
            states = outputs.last_hidden_state[None] if states is None else states
            all_logits, all_boxes = self._heads(states)  # (L, B, Q, .)
            losses = self.criterion.losses(
                all_logits,
                all_boxes,
                labels,
                query_groups=1 if extra_queries is None else config.query_groups,
                noised=noised,
                cells=self._cells(outputs),
                num_items_in_batch=num_items_in_batch,
                num_images_in_batch=num_images_in_batch,
                num_matched_in_batch=num_matched_in_batch,
            )
            if extra_queries is not None:  # the outputs are those of the object queries
                outputs = _without_extra_queries(outputs, config.num_queries)
                all_logits, all_boxes = all_logits[:, :, : config.num_queries], all_boxes[:, :, : config.num_queries]
            logits, pred_boxes = all_logits[-1], all_boxes[-1]
            if config.auxiliary_loss:
                auxiliary_outputs = [
                    {"logits": a, "pred_boxes": b} for a, b in zip(all_logits[:-1], all_boxes[:-1], strict=True)
                ]

        for_masks = {}
        if outputs.feature_maps is not None:
            for_masks["feature_maps"] = outputs.feature_maps
            if losses is not None:
                for_masks |= {"matches": losses.matches, "num_boxes": losses.num_boxes}
        output = (DetrDetectionForMasks if for_masks else DetrObjectDetectionOutput)(
            loss=None if losses is None else losses.loss,
            loss_dict=None if losses is None else losses.parts,
            logits=logits,
            pred_boxes=pred_boxes,
            auxiliary_outputs=auxiliary_outputs,
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            **for_masks,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _extra_queries(self, targets: Targets) -> tuple[NoisedTargets | None, ExtraQueries]:
        config, noised, inputs = self.config, None, {"device": targets.class_labels.device}
        if config.denoising_queries:
            noised = noise_targets(
                targets,
                config.denoising_queries,
                config.num_labels,
                config.denoising_box_noise,
                config.denoising_label_noise,
            )
            names = ("noised_labels", "noised_boxes_cxcywh", "copy", "is_real")
            inputs |= {name: getattr(noised, name) for name in names}
        return noised, self.training_only.queries(config.num_queries, len(targets.sizes), **inputs)

    def _cells(self, outputs: DetrModelOutput) -> CellPredictions | None:
        """The encoder head's predictions, in training; in the weights' own precision, as the other heads."""
        centres_xy = outputs.cell_centres_xy
        if centres_xy is None:
            return None
        with torch.autocast(centres_xy.device.type, enabled=False):
            return CellPredictions(
                *self.training_only.encoder_head(outputs.encoder_last_hidden_state, centres_xy), centres_xy
            )

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Q, D) -> logits (..., Q, C + 1) and boxes (..., Q, 4) in [0, 1].

        In the weights' own precision also under autocast: with eight bits a box lies within a pixel in 256 only, and
        the heads cost nothing beside the backbone.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(_dtype(self.class_labels_classifier, states.dtype))
            return self.class_labels_classifier(states), self.bbox_predictor(states).sigmoid()


def _without_extra_queries(outputs: DetrModelOutput, num_queries: int) -> DetrModelOutput:
    def cut(tensors: tuple[Tensor, ...] | None, *, of_both: bool = False) -> tuple[Tensor, ...] | None:
        if tensors is None:
            return None
        return tuple(t[..., :num_queries, : num_queries if of_both else None] for t in tensors)

    return replace(
        outputs,
        last_hidden_state=outputs.last_hidden_state[:, :num_queries],
        decoder_hidden_states=cut(outputs.decoder_hidden_states),
        decoder_attentions=cut(outputs.decoder_attentions, of_both=True),
        cross_attentions=cut(outputs.cross_attentions),
    )


def _shorten(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most] or ["none"]) + (", ..." if len(names) > most else "")


def _dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Of its first floating-point tensor: quantized layers have none, and replicas of `DataParallel` no parameters."""
    return next((t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), otherwise)
