"""Changes to a model that were tried for how soon it converges and are not in the package."""

import types

import torch
from torch import Tensor, nn

from hf_detr.nn.position_embedding import sine_waves


def predict_absolute_boxes(model: nn.Module) -> None:
    """The encoder's training-only head predicts boxes in the image instead of from the cell's centre, so that the
    memory has to hold where each cell lies, which the decoder reads from it."""

    def forward(self, memory: Tensor, centres_xy: Tensor) -> tuple[Tensor, Tensor]:
        memory = memory.to(self.classifier.weight.dtype)
        return self.classifier(memory), self.box(memory).sigmoid()

    head = model.training_only.encoder_head
    head.forward = types.MethodType(forward, head)


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
