"""Queries that only training has, beside the object queries: further groups of them, and noised copies of the targets.

They pass through the same decoder in the same call, in blocks that do not see each other, so the object queries compute
what they would alone. At inference nothing of this is left: the checkpoint is a plain DETR.

Groups: Chen et al., Group DETR, 2022. Denoising: Li et al., DN-DETR, 2022, here with plain DETR's positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .position_embedding import sine_waves

# B images, Q object queries, K groups of them (the first is the model's own), E noised copies, D channels

_WAVES = 64  # sines and cosines for each of a box's four numbers


@dataclass(frozen=True)
class ExtraQueries:
    """What the decoder gets behind the object queries.

    Attributes:
        contents, positions: (B, (K - 1) Q + E, D).
        block: (B, K Q + E) int64, of all queries: those of one number see each other.
    """

    contents: Tensor
    positions: Tensor
    block: Tensor

    def allowed(self) -> Tensor:
        """(B, K Q + E, K Q + E) bool, True where a query (row) may see another (column)."""
        return self.block[:, :, None] == self.block[:, None, :]


class TrainingQueries(nn.Module):
    """Makes them. Its parameters belong to the training's checkpoint alone."""

    def __init__(self, d_model: int, num_queries: int, num_groups: int, num_labels: int, denoises: bool):
        super().__init__()
        self.num_groups = num_groups
        self.group_positions, self.label_contents, self.box_positions = None, None, None
        if num_groups > 1:
            self.group_positions = nn.Embedding((num_groups - 1) * num_queries, d_model)
            self.group_positions.notes_start = True
        if denoises:
            self.label_contents = nn.Embedding(num_labels, d_model)
            self.box_positions = nn.Sequential(nn.Linear(4 * _WAVES, d_model), nn.ReLU(), nn.Linear(d_model, d_model))

    def forward(
        self,
        num_queries: int,
        batch_size: int,
        noised_labels: Tensor | None = None,
        noised_boxes_cxcywh: Tensor | None = None,
        copy: Tensor | None = None,
        is_real: Tensor | None = None,
    ) -> ExtraQueries:
        """`noised_labels` (B, E), `noised_boxes_cxcywh` (B, E, 4), `copy` (E,) and `is_real` (B, E) as in
        `loss.denoising.NoisedTargets`, where there are copies."""
        device = next(self.parameters()).device
        contents, positions = [], []
        block = [torch.arange(self.num_groups, device=device).repeat_interleave(num_queries).expand(batch_size, -1)]
        if self.group_positions is not None:
            positions.append(self.group_positions.weight.expand(batch_size, -1, -1))
            contents.append(torch.zeros_like(positions[0]))  # as the object queries
        if noised_labels is not None:
            contents.append(self.label_contents(noised_labels))
            waves = sine_waves(noised_boxes_cxcywh, _WAVES).flatten(-2)
            positions.append(self.box_positions(waves.to(self.label_contents.weight.dtype)))
            fillers = -1 - torch.arange(len(copy), device=device)  # each sees itself alone, and no other sees it
            block.append(torch.where(is_real, self.num_groups + copy, fillers))
        return ExtraQueries(torch.cat(contents, 1), torch.cat(positions, 1), torch.cat(block, 1))

    @torch.no_grad()
    def start_fresh_groups_from(self, query_positions: Tensor) -> None:
        """Groups that no checkpoint brought become copies of the trained queries (Q, D), a little apart, since equal
        groups would stay equal."""
        if self.group_positions is not None and getattr(self.group_positions, "started_fresh", False):
            copies = query_positions.repeat(self.num_groups - 1, 1)
            apart = torch.randn_like(copies) * (0.1 * query_positions.std())
            self.group_positions.weight.copy_(copies + apart)
            self.group_positions.started_fresh = False

    @torch.no_grad()
    def set_classes(self, num_labels: int, shared: dict[int, int]) -> None:
        """Makes the contents for other classes; `shared`, new id -> old id, says which stay."""
        if self.label_contents is None:
            return
        old = self.label_contents.weight
        new = nn.Embedding(num_labels, old.shape[1], device=old.device, dtype=old.dtype)
        for new_index, old_index in shared.items():
            new.weight[new_index] = old[old_index]
        self.label_contents = new
