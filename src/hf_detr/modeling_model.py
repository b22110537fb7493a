"""DetrModel, in the order of the data: backbone, encoder, decoder.

Parameter names are the names in the Hub's files, so loading and saving map nothing. Nothing in the forward pass reads
a tensor back to the host.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_detr import DetrConfig
from .modeling_base import DetrPreTrainedModel, loading_checkpoint
from .modeling_outputs import DetrModelOutput
from .nn.backbone import ConvEncoder, build_timm_backbone, build_transformers_backbone
from .nn.position_embedding import LearnedPositionEmbedding, SinePositionEmbedding, cell_centres_xy
from .nn.training_queries import ExtraQueries
from .nn.transformer import AttentionFunction, Decoder, DecoderLayer, Encoder, EncoderLayer, eager_attention

# B images of height x width, H x W cells of the feature map, K = HW of them in a row, L decoder layers, Q queries,
# D channels


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
    """Backbone, encoder and decoder: from images to the states of the object queries (paper, figure 2)."""

    def __init__(self, config: DetrConfig):
        super().__init__(config)
        self.backbone = _Backbone(_make_backbone(config))
        positions = SinePositionEmbedding if config.position_embedding_type == "sine" else LearnedPositionEmbedding
        self.position_embedding = positions(config.d_model)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        channels = self.backbone.intermediate_channel_sizes[-1]
        self.input_projection = nn.Conv2d(channels, config.d_model, kernel_size=1)
        common = {
            "d_model": config.d_model,
            "attention_dropout": config.attention_dropout,
            "activation": ACT2FN[config.activation_function],
            "dropout": config.dropout,
            "activation_dropout": config.activation_dropout,
        }
        self.encoder = Encoder(
            [
                EncoderLayer(num_heads=config.encoder_attention_heads, ffn_dim=config.encoder_ffn_dim, **common)
                for _ in range(config.encoder_layers)
            ],
            layerdrop=config.encoder_layerdrop,
        )
        self.decoder = Decoder(
            [
                DecoderLayer(num_heads=config.decoder_attention_heads, ffn_dim=config.decoder_ffn_dim, **common)
                for _ in range(config.decoder_layers)
            ],
            d_model=config.d_model,
            layerdrop=config.decoder_layerdrop,
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
            features, height, width = self._features(pixel_values, pixel_mask)
        else:
            features, height, width = self._given_features(pixel_values, inputs_embeds)
        cell_mask = None  # (B, H, W) True on image
        if pixel_mask is not None:
            cell_mask = F.interpolate(pixel_mask[None].float(), size=(height, width))[0].bool()
        attend = self._attention_function(output_attentions, features.device)
        positions = self.position_embedding(height, width, cell_mask, features.device).to(features.dtype)
        memory_mask = None if cell_mask is None else _additive(cell_mask.flatten(1)[:, None, None], features.dtype)

        encoder_states, encoder_attentions = None, None
        if encoder_outputs is None:
            memory, encoder_states, encoder_attentions = self.encoder(features, positions, memory_mask, attend)
        else:
            memory, encoder_states, encoder_attentions = _unpack_encoder_outputs(encoder_outputs)

        query_positions = self.query_position_embeddings.weight[None].expand(memory.shape[0], -1, -1)
        if query_positions.dtype != memory.dtype:
            query_positions = query_positions.to(memory.dtype)  # under autocast
        queries = torch.zeros_like(query_positions) if decoder_inputs_embeds is None else decoder_inputs_embeds
        query_mask = _query_mask(decoder_attention_mask, queries, extra_queries)
        looked_at = self.training or torch.is_grad_enabled() or output_attentions or output_hidden_states
        if decoder_inputs_embeds is None and not looked_at:
            queries = None  # zeros
        if extra_queries is not None:
            queries = torch.cat((queries, extra_queries.contents.to(queries.dtype)), dim=1)
            query_positions = torch.cat((query_positions, extra_queries.positions.to(queries.dtype)), dim=1)
        states, states_before, self_attentions, cross_attentions = self.decoder(
            queries,
            query_positions,
            memory,
            positions,
            query_mask,
            memory_mask,
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
        )
        return output if return_dict else output.to_tuple()

    def _attention_function(self, output_attentions: bool, device: torch.device) -> AttentionFunction:
        implementation = self.config._attn_implementation
        if output_attentions:
            return eager_attention  # the others do not give their weights
        if implementation == "sdpa" and device.type == "cpu" and torch.is_grad_enabled():
            # The fused kernel's backward pass loses digits on the CPU: gradient norms of the golden cases are off by up
            # to 2e-3 there, by 4e-5 with the attention written out.
            return eager_attention
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)

    def _features(self, pixel_values: Tensor | None, pixel_mask: Tensor | None) -> tuple[Tensor, int, int]:
        """-> the projected feature map (B, HW, D), H and W."""
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
        weight = self.input_projection.weight
        feature_map = self.input_projection(self.backbone.conv_encoder(pixel_values.to(weight.dtype)))  # (B, D, H, W)
        height, width = feature_map.shape[-2:]
        return feature_map.flatten(2).transpose(1, 2), height, width

    def _given_features(self, pixel_values: Tensor | None, inputs_embeds: Tensor) -> tuple[Tensor, int, int]:
        if pixel_values is not None:
            raise ValueError("Both pixel_values and inputs_embeds were given; keep one of them.")
        side = int(inputs_embeds.shape[1] ** 0.5)
        if inputs_embeds.ndim != 3 or side * side != inputs_embeds.shape[1]:
            raise ValueError(
                f"inputs_embeds must be a square feature map of shape (images, side * side, {self.config.d_model}), "
                f"not {tuple(inputs_embeds.shape)}: the sides of another map cannot be told from it."
            )
        return inputs_embeds, side, side


def _make_backbone(config: DetrConfig) -> ConvEncoder:
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
        )
    else:
        encoder = build_transformers_backbone(backbone, (backbone.name_or_path or None) if pretrained else None)
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


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool, True where attended -> 0 there and the least number elsewhere, which also stays finite where a whole row
    is masked."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _query_mask(mask: Tensor | None, queries: Tensor, extra_queries: ExtraQueries | None) -> Tensor | None:
    """(B, Q) or (B, Q, Q), and blocks of extra queries -> what is added to the scores (B, heads, queries, queries)."""
    batch_size, num_queries = queries.shape[:2]
    if mask is not None:
        if mask.shape not in ((batch_size, num_queries), (batch_size, num_queries, num_queries)):
            raise ValueError(
                f"decoder_attention_mask must have the shape ({batch_size}, {num_queries}) or "
                f"({batch_size}, {num_queries}, {num_queries}), not {tuple(mask.shape)}."
            )
        mask = mask.bool()[:, None] if mask.ndim == 2 else mask.bool()  # (B, 1 or Q, Q)
    if extra_queries is not None:
        allowed = extra_queries.allowed()
        if mask is not None:
            allowed[:, :num_queries, :num_queries] &= mask
        mask = allowed
    return None if mask is None else _additive(mask[:, None], queries.dtype)


def _unpack_encoder_outputs(outputs: BaseModelOutput | tuple[Tensor, ...]):
    """-> memory, the states before each layer, attentions."""
    if not isinstance(outputs, BaseModelOutput):
        names = ("last_hidden_state", "hidden_states", "attentions")
        outputs = BaseModelOutput(**dict(zip(names, outputs, strict=False)))
    before = None if outputs.hidden_states is None else list(outputs.hidden_states[:-1])
    return outputs.last_hidden_state, before, outputs.attentions
