"""Masks of padding and of queries, and attention masks in the form that is added to the scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .auxiliary import ExtraQueries

# B images, Q queries


def cells_on_image(pixel_mask: Tensor | None, height: int, width: int) -> Tensor | None:
    """(B, image height, image width), 1 on image -> (B, height, width) bool, True for cells of the feature map on it;
    None for None."""
    if pixel_mask is None:
        return None
    return F.interpolate(pixel_mask[None].float(), size=(height, width))[0].bool()


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool, True where attended -> 0 there and the least number elsewhere, which also stays finite where a whole row
    is masked."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def query_mask(mask: Tensor | None, queries: Tensor, extra_queries: ExtraQueries | None) -> Tensor | None:
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
    return None if mask is None else additive_mask(mask[:, None], queries.dtype)
