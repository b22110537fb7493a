"""What processes and workers read of a stream: disjoint shares that together are the whole."""

from typing import Any

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be read from its start; None is none."""
    if dataset is None:
        return False
    return isinstance(dataset, IterableDataset | torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__")


def share_of_stream(stream: Any, process_index: int = 0, num_processes: int = 1) -> Any:
    """The stream that this process reads, as an object of its own: whole shards where their number allows it, else
    every n-th row. Its workers then share out shards. ValueError for what `datasets` cannot divide."""
    if isinstance(stream, IterableDataset):
        return split_dataset_by_node(stream, process_index, num_processes)
    if num_processes > 1:
        raise ValueError(
            f"{type(stream).__name__} cannot be divided among {num_processes} processes; make it a "
            "datasets.IterableDataset, as by IterableDataset.from_generator."
        )
    return stream


def useful_workers(stream: Any, wanted: int) -> int:
    """How many of the workers wanted would have something to read: `datasets` gives each some of the shards."""
    return min(wanted, stream.num_shards) if isinstance(stream, IterableDataset) else wanted
