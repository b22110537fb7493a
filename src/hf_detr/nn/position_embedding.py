"""Where each cell of the feature map lies: the two position embeddings of the paper (A.4)."""

import math

import torch
from torch import Tensor, nn

# B images, H x W cells, D channels


class SinePositionEmbedding(nn.Module):
    """Sines and cosines of the row in the first half of the channels, of the column in the second.

    Positions count the cells *on the image* from 1 and are scaled to (0, 2 pi], so that an image has the same
    embedding with and without padding beside it. Nothing is learned, and any size is allowed.
    """

    def __init__(self, d_model: int, temperature: float = 10_000.0):
        super().__init__()
        self.features = d_model // 2
        self.temperature = temperature

    def forward(self, height: int, width: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """`mask` (B, H, W) bool, True on image, or None where nothing is padded -> (B or 1, HW, D) float32."""
        if mask is None:
            rows = self._waves(
                torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + 1e-6)
            )  # (H, D/2)
            columns = self._waves(
                torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + 1e-6)
            )  # (W, D/2)
            rows = rows[:, None].expand(height, width, -1)
            columns = columns[None].expand(height, width, -1)
            return torch.cat((rows, columns), dim=-1).flatten(0, 1)[None]
        row, column = mask.cumsum(1, dtype=torch.float32), mask.cumsum(2, dtype=torch.float32)  # (B, H, W)
        rows = self._waves(row / (row[:, -1:, :] + 1e-6))
        columns = self._waves(column / (column[:, :, -1:] + 1e-6))
        return torch.cat((rows, columns), dim=-1).flatten(1, 2)

    def _waves(self, positions: Tensor) -> Tensor:
        return sine_waves(positions, self.features, self.temperature)


class LearnedPositionEmbedding(nn.Module):
    """One learned vector per row and one per column, for maps of at most 50 x 50 cells. Padding is not seen."""

    MAX_CELLS = 50

    def __init__(self, d_model: int):
        super().__init__()
        self.row_embeddings = nn.Embedding(self.MAX_CELLS, d_model // 2)
        self.column_embeddings = nn.Embedding(self.MAX_CELLS, d_model // 2)
        self.row_embeddings.starts_uniform = self.column_embeddings.starts_uniform = True

    def forward(self, height: int, width: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """-> (1, HW, D). Raises ValueError for a map of more than 50 rows or columns."""
        if height > self.MAX_CELLS or width > self.MAX_CELLS:
            raise ValueError(
                f"The feature map has {height} x {width} cells, learned positions reach {self.MAX_CELLS} x "
                f"{self.MAX_CELLS}; resize the images to be smaller, or train with position_embedding_type='sine'."
            )
        # called rather than read: adapters and offloading act on a module's call
        rows = self.row_embeddings(torch.arange(height, device=device))[:, None].expand(height, width, -1)
        columns = self.column_embeddings(torch.arange(width, device=device))[None].expand(height, width, -1)
        return torch.cat((columns, rows), dim=-1).flatten(0, 1)[None]  # columns first, as published


def cell_centres_xy(height: int, width: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """`mask` as for the embeddings -> (B or 1, HW, 2) float32, in [0, 1] of the visible image; -1 on padding."""
    if mask is None:
        mask = torch.ones(1, height, width, dtype=torch.bool, device=device)
    row, column = mask.cumsum(1, dtype=torch.float32), mask.cumsum(2, dtype=torch.float32)  # (B, H, W), from 1
    centres = torch.stack(((column - 0.5) / column[:, :, -1:], (row - 0.5) / row[:, -1:, :]), dim=-1)
    return centres.masked_fill(~mask[..., None], -1.0).flatten(1, 2)


def sine_waves(positions: Tensor, features: int, temperature: float = 10_000.0) -> Tensor:
    """(...) in [0, 1] -> (..., features) float32: sine and cosine of each frequency, side by side; `features` is even.
    A position of 1 is a whole turn of the fastest."""
    exponent = torch.arange(0, features, 2, device=positions.device, dtype=torch.float32) / features
    angle = positions[..., None] * (2 * math.pi) / temperature**exponent
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
