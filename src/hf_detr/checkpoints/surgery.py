"""Fine-tuning on other classes or another number of queries: which rows of the trained layers stay.

Most queries answer "no object", and a detector that has to learn that again from nothing spends its first epochs on it.
So the "no object" row always stays, and the row of every class whose name the new data set has as well.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

_NAMELESS = re.compile(r"label_\d+|n/a|")
_Layer = TypeVar("_Layer", nn.Linear, nn.Embedding)


def shared_classes(old_id2label: Mapping[int, str], new_id2label: Mapping[int, str]) -> dict[int, int]:
    """New class id -> old class id, for equal names. Case and outer spaces do not count; "LABEL_3" is no name. Of old
    classes that share a name, the last one counts."""
    old_ids = {_key(name): index for index, name in old_id2label.items()}
    names = {index: _key(name) for index, name in new_id2label.items()}
    return {index: old_ids[name] for index, name in names.items() if name in old_ids and not _NAMELESS.fullmatch(name)}


def transferred_linear(old: nn.Linear, rows: Mapping[int, int], num_rows: int) -> nn.Linear:
    """A layer of `num_rows` outputs that keeps weight and bias of `rows`, new row -> old row; the others start as
    PyTorch starts them. It has the device, dtype and mode of `old`, and trains. IndexError for a row that is not
    there."""
    options = {"device": old.weight.device, "dtype": old.weight.dtype}
    return _with_rows(nn.Linear(old.in_features, num_rows, old.bias is not None, **options), old, rows)


def transferred_embedding(old: nn.Embedding, rows: Mapping[int, int], num_rows: int) -> nn.Embedding:
    """As `transferred_linear`, for an embedding of `num_rows`; new rows start from N(0, 1)."""
    options = {"device": old.weight.device, "dtype": old.weight.dtype}
    return _with_rows(nn.Embedding(num_rows, old.embedding_dim, **options), old, rows)


def resized_embedding(old: nn.Embedding, num_rows: int) -> nn.Embedding:
    """As `transferred_embedding`, with the first rows kept."""
    return transferred_embedding(old, {row: row for row in range(min(num_rows, old.num_embeddings))}, num_rows)


@torch.no_grad()
def _with_rows(new: _Layer, old: _Layer, rows: Mapping[int, int]) -> _Layer:
    to, of = list(rows), list(rows.values())
    for name, tensor in new.named_parameters():
        tensor[to] = getattr(old, name)[of]
    return new.train(old.training)


def _key(name: str) -> str:
    return str(name).strip().lower()
