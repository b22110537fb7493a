"""The transformer of the paper (figure 10, A.3): an encoder over the feature map, a decoder over the object queries.

It differs from a text transformer in three ways: positions are added to queries and keys of *every* attention, never
to values; the decoder sees all its queries at once; and each decoder layer's state, normed, can go to the heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .dropout import dropout as drop

# B images, K cells of the feature map, Q queries, D channels, N heads
AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_,
) -> tuple[Tensor, Tensor]:
    """Attention written out, in the form of Transformers' attention interface; the one that can return its weights.

    (B, N, Q, D/N) x (B, N, K, D/N) -> (B, Q, N, D/N) and the weights (B, N, Q, K). `attention_mask` is added.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = drop(scores.softmax(dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head attention. Queries and keys come with their positions added, values without."""

    is_causal = False  # read by Transformers' attention functions

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.head_dim = d_model // num_heads
        self.dropout = dropout
        # published as one (3 D, D) matrix, whose Xavier bound is smaller than that of its thirds
        self.q_proj = xavier_linear(d_model, d_model, gain=2**-0.5)
        self.k_proj = xavier_linear(d_model, d_model, gain=2**-0.5)
        self.v_proj = xavier_linear(d_model, d_model, gain=2**-0.5)
        self.out_proj = xavier_linear(d_model, d_model)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, attend: AttentionFunction
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Q, D), (B, K, D), (B, K, D), added mask (B, 1, 1 or Q, K) -> (B, Q, D), weights (B, N, Q, K) or None."""
        query, key, value = (
            self._heads(projection(states))
            for projection, states in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        output, weights = attend(
            self, query, key, value, mask, dropout=self.dropout if self.training else 0.0, scaling=self.head_dim**-0.5
        )
        if weights is None and output.device.type == "cpu":
            # fused attention there makes numbers of scores that are NaN
            output = output + 0 * (query.amax(-1).transpose(1, 2)[..., None] + key.amax((2, 3))[:, None, :, None])
        return self.out_proj(output.flatten(2)), weights

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, N, ., D/N)


class _Layer(GradientCheckpointingLayer):
    """What encoder and decoder layers share: the feed-forward block, and dropout before each residual sum."""

    def __init__(self, d_model: int, ffn_dim: int, activation: nn.Module, dropout: float, activation_dropout: float):
        super().__init__()
        self.dropout = dropout
        self.activation_dropout = activation_dropout
        self.activation = activation
        self.fc1 = xavier_linear(d_model, ffn_dim, without_bias=False)
        self.fc2 = xavier_linear(ffn_dim, d_model, without_bias=False)
        self.final_layer_norm = nn.LayerNorm(d_model)

    def _feed_forward(self, states: Tensor) -> Tensor:
        inner = drop(self.activation(self.fc1(states)), self.activation_dropout, self.training)
        return self.final_layer_norm(states + self._drop(self.fc2(inner)))

    def _drop(self, states: Tensor) -> Tensor:
        return drop(states, self.dropout, self.training)


class EncoderLayer(_Layer):
    """Cells attend to cells."""

    def __init__(self, d_model: int, num_heads: int, attention_dropout: float, **feed_forward):
        super().__init__(d_model, **feed_forward)
        self.self_attn = Attention(d_model, num_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)

    def forward(
        self, states: Tensor, positions: Tensor, mask: Tensor | None, attend: AttentionFunction
    ) -> tuple[Tensor, Tensor | None]:
        """(B, K, D) -> (B, K, D) and the attention weights where `attend` gives them."""
        with_positions = states + positions
        attended, weights = self.self_attn(with_positions, with_positions, states, mask, attend)
        states = self.self_attn_layer_norm(states + self._drop(attended))
        return self._feed_forward(states), weights


class DecoderLayer(_Layer):
    """Queries attend to queries, then to the image."""

    def __init__(self, d_model: int, num_heads: int, attention_dropout: float, **feed_forward):
        super().__init__(d_model, **feed_forward)
        self.self_attn = Attention(d_model, num_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_attn = Attention(d_model, num_heads, attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)

    def forward(
        self,
        states: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_with_positions: Tensor,
        query_mask: Tensor | None,
        memory_mask: Tensor | None,
        attend: AttentionFunction,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, Q, D) -> (B, Q, D), self-attention weights and cross-attention weights where `attend` gives them."""
        with_positions = states + query_positions
        attended, self_weights = self.self_attn(with_positions, with_positions, states, query_mask, attend)
        states = self.self_attn_layer_norm(states + self._drop(attended))
        attended, cross_weights = self.encoder_attn(
            states + query_positions, memory_with_positions, memory, memory_mask, attend
        )
        states = self.encoder_attn_layer_norm(states + self._drop(attended))
        return self._feed_forward(states), self_weights, cross_weights


class Encoder(nn.Module):
    """A stack of encoder layers; with none of them the memory is the projected feature map."""

    def __init__(self, layers: list[EncoderLayer], layerdrop: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layerdrop = layerdrop

    def forward(
        self, states: Tensor, positions: Tensor, mask: Tensor | None, attend: AttentionFunction
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """(B, K, D) -> the memory (B, K, D), the states before each layer, the attention weights of each."""
        before, attentions = [], []
        for layer in self.layers:
            before.append(states)
            if self.training and _skips(self.layerdrop):
                continue
            states, weights = layer(states, positions, mask, attend)
            attentions.append(weights)
        return states, before, attentions


class Decoder(nn.Module):
    """A stack of decoder layers and the norm that every layer's state passes on its way to the heads."""

    def __init__(self, layers: list[DecoderLayer], d_model: int, layerdrop: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layernorm = nn.LayerNorm(d_model)
        self.layerdrop = layerdrop

    def forward(
        self,
        states: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        positions: Tensor,
        query_mask: Tensor | None,
        memory_mask: Tensor | None,
        attend: AttentionFunction,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None], list[Tensor | None]]:
        """(B, Q, D) -> the states after each layer (not normed), those before each, self- and cross-attention weights.

        The next layer reads the state itself: only the copy for the heads is normed, by `layernorm`, by the caller.
        """
        memory_with_positions = memory + positions  # the same keys for every layer
        after, before, self_attentions, cross_attentions = [], [], [], []
        for layer in self.layers:
            before.append(states)
            if not (self.training and _skips(self.layerdrop)):
                states, self_weights, cross_weights = layer(
                    states, query_positions, memory, memory_with_positions, query_mask, memory_mask, attend
                )
                self_attentions.append(self_weights)
                cross_attentions.append(cross_weights)
            after.append(states)
        return after, before, self_attentions, cross_attentions


def xavier_linear(inputs: int, outputs: int, gain: float = 1.0, without_bias: bool = True) -> nn.Linear:
    """A linear layer that says how it starts; the model's `_init_weights` does it."""
    linear = nn.Linear(inputs, outputs)
    linear.xavier_gain = gain
    linear.starts_without_bias = without_bias
    return linear


def _skips(chance: float) -> bool:
    return chance > 0 and torch.rand((), device="cpu").item() < chance  # drawn on the host: no device is waited for
