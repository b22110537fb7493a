"""The parameters that only training has: they belong to its checkpoints, and no exported file holds them."""

from torch import nn

from .encoder_head import EncoderHead
from .training_queries import TrainingQueries


class TrainingOnly(nn.Module):
    """Further queries for the decoder, and a head on the encoder; None where training does without."""

    def __init__(self, queries: TrainingQueries | None, encoder_head: EncoderHead | None):
        super().__init__()
        self.queries = queries
        self.encoder_head = encoder_head

    def set_classes(self, num_labels: int, shared: dict[int, int]) -> None:
        """Makes what knows the classes for other ones; `shared`, new id -> old id, says which stay."""
        for part in (self.queries, self.encoder_head):
            if part is not None:
                part.set_classes(num_labels, shared)
