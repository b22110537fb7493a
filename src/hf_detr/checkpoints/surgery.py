"""Fine-tuning on other classes: which rows of the class head stay.

Most queries answer "no object", and a detector that has to learn that again from nothing spends its first epochs on it.
So the "no object" row always stays, and the row of every class whose name the new data set has as well.
"""

import re

import torch
from torch import Tensor

_NAMELESS = re.compile(r"label_\d+|n/a|")


def shared_classes(old: dict[int, str], new: dict[int, str]) -> dict[int, int]:
    """New class id -> old class id, for equal names. Case and outer spaces do not count; "LABEL_3" is no name."""
    old_ids = {_key(name): index for index, name in old.items()}
    pairs = {index: old_ids.get(_key(name)) for index, name in new.items() if not _NAMELESS.fullmatch(_key(name))}
    return {index: old_index for index, old_index in pairs.items() if old_index is not None}


@torch.no_grad()
def keep_rows(old_rows: Tensor, new_rows: Tensor, shared: dict[int, int]) -> None:
    """Writes the rows of shared classes, and the last ("no object"), into `new_rows` (classes + 1, ...)."""
    for new_index, old_index in shared.items():
        new_rows[new_index] = old_rows[old_index]
    new_rows[-1] = old_rows[-1]


def _key(name: str) -> str:
    return name.strip().lower()
