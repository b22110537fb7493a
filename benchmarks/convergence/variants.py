"""A change to a model that was tried for how soon it converges and is not in the package."""

import torch
from torch import nn

from hf_detr.nn.position_embedding import sine_waves


@torch.no_grad()
def start_with_local_attention(model: nn.Module, gain: float = 2.0, frequencies: int = 4) -> None:
    """Each query starts at a place of its own and attends around it: query embeddings are position embeddings of a
    grid, and the cross-attentions' query and key projections compare the positions' fastest frequencies."""
    config = model.config
    side = int(config.num_queries**0.5 + 0.999)
    width = config.d_model // 2
    places = torch.arange(config.num_queries)
    rows, columns = places // side, places % side
    grid = [(numbers + 0.5) / (numbers.max() + 1) for numbers in (rows, columns)]
    waves = torch.cat([sine_waves(one, width) for one in grid], dim=-1)  # (Q, D), rows first
    model.model.query_position_embeddings.weight.copy_(waves)
    used = torch.cat((torch.arange(2 * frequencies), width + torch.arange(2 * frequencies)))
    for layer in model.model.decoder.layers:
        attention = layer.encoder_attn
        rows_of_head = attention.head_dim
        for first in range(0, config.d_model, rows_of_head):
            basis = nn.init.orthogonal_(torch.empty(rows_of_head, len(used)))
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[first : first + rows_of_head, used] = gain * basis
