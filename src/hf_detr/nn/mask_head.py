"""From a query's state to its mask (paper, 4.4 and figure 8): an attention map over the encoded cells, then a small FPN
that brings it to the resolution of the backbone's finest map.

Queries are treated one by one, so leaving some out changes no other's mask. What all queries of an image share is
computed once: the backbone's maps in the head's width, and the part of the first convolution that sees the image alone.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .folding import is_plain
from .transformer import xavier_linear

# B images, K queries of each, N heads, D channels, H x W cells of the backbone's last map

_MOST_GROUPS = 8  # of each group norm


class AttentionMap(nn.Module):
    """How much each query attends to each cell: attention weights alone, without values."""

    def __init__(self, d_model: int, num_heads: int, gain: float = 1.0):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = xavier_linear(d_model, d_model, gain)
        self.k_linear = xavier_linear(d_model, d_model, gain)

    def forward(self, states: Tensor, memory: Tensor, cell_mask: Tensor | None) -> Tensor:
        """(B, K, D), (B, HW, D), `cell_mask` (B, HW) True on image or None -> (B, K, N, HW). The weights of a query sum
        to 1 over all heads together, as published."""
        queries = self.q_linear(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, K, D / N)
        keys = self.k_linear(memory).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)  # (B, N, D / N, HW)
        scores = (queries * queries.shape[-1] ** -0.5 @ keys).transpose(1, 2)  # (B, K, N, HW)
        if cell_mask is not None:
            scores = scores.masked_fill(~cell_mask[:, None, None], torch.finfo(scores.dtype).min)
        return scores.flatten(2).softmax(-1).view(scores.shape)


class MaskHead(GradientCheckpointingLayer):
    """Five 3 x 3 convolutions with group norms, three of them after a map of the backbone is added, and a last one to
    one channel. Layers have the names of the Hub's files.

    Args of the constructor:
        map_channels: of the backbone's maps that are added, coarsest first.
        activation: by transformers' name; the published one is "relu".
    """

    def __init__(self, d_model: int, num_heads: int, map_channels: list[int], activation: str = "relu"):
        super().__init__()
        first = d_model + num_heads
        widths = [first, first, d_model // 2, d_model // 4, d_model // 8, d_model // 16]
        if any(width < 1 or width % min(_MOST_GROUPS, width) for width in widths):
            raise ValueError(
                f"d_model={d_model} with {num_heads} heads makes a mask head of {widths} channels, whose group norms "
                f"need multiples of {_MOST_GROUPS} (or fewer channels than that); 256 with 8 heads is the paper's."
            )
        for index, (before, after) in enumerate(pairwise(widths), 1):
            self.add_module(f"lay{index}", _convolution(before, after, 3))
            self.add_module(f"gn{index}", nn.GroupNorm(min(_MOST_GROUPS, after), after))
        self.out_lay = _convolution(widths[-1], 1, 3)
        for index, (channels, width) in enumerate(zip(map_channels, widths[2:5], strict=True), 1):
            self.add_module(f"adapter{index}", _convolution(channels, width, 1))
        self.activations = nn.ModuleList(ACT2FN[activation] for _ in range(5))  # no weights, so no names in files

    def forward(
        self, features: Tensor, attention: Tensor, coarse: Tensor, middle: Tensor, fine: Tensor, chunk_size: int = 0
    ) -> Tensor:
        """-> mask logits (B, K, height / 4, width / 4), at the resolution of `fine`.

        Args:
            features: (B, D, H, W) the projected feature map.
            attention: (B, K, N, H, W) of `AttentionMap`.
            coarse, middle, fine: the backbone's others (B, channels, ...).
            chunk_size: so many queries of each image at a time, for less memory; 0 for all at once.
        """
        maps = (self.adapter1(coarse), self.adapter2(middle), self.adapter3(fine))
        shared = self._shared_part(features)
        chunks = attention.split(chunk_size, dim=1) if chunk_size else (attention,)
        masks = [self._decode(features, shared, chunk, maps) for chunk in chunks]
        return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)

    def _shared_part(self, features: Tensor) -> Tensor | None:
        """What the first convolution makes of the image, (B, D + N, H, W): a convolution of two inputs side by side is
        the sum of one of each. None where the layer is not just a convolution whose weights can be read: adapters,
        hooks, offloaded weights."""
        if type(self.lay1) is not nn.Conv2d or not is_plain(self.lay1):
            return None
        return F.conv2d(features, self.lay1.weight[:, : features.shape[1]], self.lay1.bias, padding=1)

    def _decode(self, features: Tensor, shared: Tensor | None, attention: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        count, channels = attention.shape[1], features.shape[1]
        rows = attention.flatten(0, 1)  # (B K, N, H, W)
        if features.is_contiguous(memory_format=torch.channels_last):  # then all is: 1.4 times as fast at inference
            rows = rows.contiguous(memory_format=torch.channels_last)
        if shared is None:
            image = features[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
            rows = self.lay1(torch.cat((image, rows), dim=1))
        else:
            rows = _add_of_image(F.conv2d(rows, self.lay1.weight[:, channels:], padding=1), shared)
        rows = self.activations[0](self.gn1(rows))
        rows = self.activations[1](self.gn2(self.lay2(rows)))
        stages = zip(maps, (self.lay3, self.lay4, self.lay5), (self.gn3, self.gn4, self.gn5), strict=True)
        for (one, layer, norm), activation in zip(stages, self.activations[2:], strict=True):
            rows = _add_of_image(F.interpolate(rows, size=one.shape[-2:], mode="nearest"), one)
            rows = activation(norm(layer(rows)))
        return self.out_lay(rows)[:, 0].unflatten(0, (-1, count))


def _add_of_image(rows: Tensor, of_image: Tensor) -> Tensor:
    """(B K, C, H, W) + (B, C, H, W), each image's to its own queries."""
    return (rows.unflatten(0, (of_image.shape[0], -1)) + of_image[:, None]).flatten(0, 1)


def _convolution(before: int, after: int, size: int) -> nn.Conv2d:
    """One that says how it starts; the model's `_init_weights` does it."""
    convolution = nn.Conv2d(before, after, size, padding=size // 2)
    convolution.starts_kaiming = True
    return convolution
