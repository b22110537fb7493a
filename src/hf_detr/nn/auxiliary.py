"""All that only training has beside a plain DETR: further queries for the decoder, and a head on the encoder.

Its parameters belong to a training's checkpoints; no exported file holds them. Further queries pass through the same
decoder in the same call, in blocks that do not see each other, so the object queries compute what they would alone.

Groups of queries: Chen et al., Group DETR, 2022. Denoising: Li et al., DN-DETR, 2022, here with plain DETR's positions.
A loss for the encoder's cells: see `loss.encoder_loss`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .heads import BoxHead
from .position_embedding import sine_waves

# B images, HW cells, Q object queries, K groups of them (the first is the model's own), E denoising queries, D
# channels, C classes

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
    """Makes the further queries of a training step."""

    def __init__(self, d_model: int, num_queries: int, num_groups: int, num_labels: int, denoises: bool):
        super().__init__()
        self.num_groups = num_groups
        self.group_positions, self.label_contents, self.box_positions = None, None, None
        if num_groups > 1:
            self.group_positions = nn.Embedding((num_groups - 1) * num_queries, d_model)
            self.group_positions.starts_at_zero = True  # which stands for "not started": see `start_groups`
        if denoises:
            self.label_contents = nn.Embedding(num_labels, d_model)
            self.box_positions = nn.Sequential(nn.Linear(4 * _WAVES, d_model), nn.ReLU(), nn.Linear(d_model, d_model))

    def forward(
        self,
        num_queries: int,
        batch_size: int,
        device: torch.device,
        noised_labels: Tensor | None = None,
        noised_boxes_cxcywh: Tensor | None = None,
        copy: Tensor | None = None,
        is_real: Tensor | None = None,
    ) -> ExtraQueries:
        """`noised_labels` (B, E), `noised_boxes_cxcywh` (B, E, 4), `copy` (E,) and `is_real` (B, E) as in
        `loss.denoising.NoisedTargets`, where there are denoising queries."""
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
    def start_groups(self, query_positions: Tensor) -> None:
        """Rows of groups that are still zero become copies of the object queries (Q, D), a little apart, since equal
        groups would stay equal."""
        if self.group_positions is None:
            return
        rows = self.group_positions.weight
        is_unset = (rows == 0).all(1, keepdim=True)
        copies = query_positions.repeat(self.num_groups - 1, 1)
        apart = torch.randn_like(copies) * (0.1 * query_positions.std())
        rows.copy_(torch.where(is_unset, copies + apart, rows))


class EncoderHead(nn.Module):
    """A class and a box for every cell of the encoded feature map: what object it lies on.

    From it the encoder and the backbone learn without waiting for the decoder.
    """

    def __init__(self, d_model: int, num_labels: int):
        super().__init__()
        self.classifier = nn.Linear(d_model, num_labels + 1)  # and "no object"
        self.box = BoxHead(d_model)

    def forward(self, memory: Tensor, centres_xy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, HW, D) and the cells' centres (B or 1, HW, 2) in [0, 1] of the visible image -> logits (B, HW, C + 1) and
        boxes cxcywh (B, HW, 4) in [0, 1], whose centres are predicted from the cell's."""
        memory = memory.to(self.classifier.weight.dtype)
        box = self.box(memory)
        from_cell = box[..., :2] + torch.logit(centres_xy, eps=1e-3)
        return self.classifier(memory), torch.cat((from_cell, box[..., 2:]), dim=-1).sigmoid()


class TrainingOnly(nn.Module):
    """Both; None where training does without."""

    def __init__(self, queries: TrainingQueries | None, encoder_head: EncoderHead | None):
        super().__init__()
        self.queries = queries
        self.encoder_head = encoder_head

    @classmethod
    def from_config(cls, config: Any) -> "TrainingOnly | None":
        """What a `DetrConfig` asks for; None where that is nothing."""
        queries, head = None, None
        if config.query_groups > 1 or config.denoising_queries:
            denoises = config.denoising_queries > 0
            queries = TrainingQueries(
                config.d_model, config.num_queries, config.query_groups, config.num_labels, denoises
            )
        if config.encoder_auxiliary_loss:
            head = EncoderHead(config.d_model, config.num_labels)
        return None if queries is None and head is None else cls(queries, head)

    def keep_parts_of(self, old: "TrainingOnly | None", num_queries: int) -> None:
        """Takes over the trained parts that both have."""
        if old is None:
            return
        if None not in (self.encoder_head, old.encoder_head):
            self.encoder_head = old.encoder_head
        if None in (self.queries, old.queries):
            return
        new_queries, old_queries = self.queries, old.queries
        if None not in (new_queries.label_contents, old_queries.label_contents):
            new_queries.label_contents = old_queries.label_contents
            new_queries.box_positions = old_queries.box_positions
        if None not in (new_queries.group_positions, old_queries.group_positions):
            width = new_queries.group_positions.embedding_dim
            rows, old_rows = (
                q.group_positions.weight.view(q.num_groups - 1, -1, width) for q in (new_queries, old_queries)
            )
            groups, queries = min(len(rows), len(old_rows)), min(num_queries, old_rows.shape[1])
            rows[:groups, :queries] = old_rows[:groups, :queries]
