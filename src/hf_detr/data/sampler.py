"""Batches of pictures of like shape: less padding, so less to compute."""

from collections.abc import Iterator, Sequence
from math import log

import torch
from torch.utils.data import Sampler


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Batches of indices of pictures with like aspect ratio, each picture exactly once an epoch.

        sampler = AspectRatioBatchSampler(list(zip(dataset["height"], dataset["width"])), batch_size=4)
        DataLoader(dataset, batch_sampler=sampler, collate_fn=DetectionCollator())

    `sizes_hw` are (height, width) of every picture. With `shuffle`, pictures are shuffled, sorted by aspect ratio
    within chunks of `chunk_batches` batches, cut into batches, and the batches shuffled: batches of an epoch are
    nearly as random as without, and follow from `seed` and the epoch (`set_epoch`) alone. Without, pictures are sorted
    over the whole set. The last batch may be smaller; `drop_last` leaves it out.
    """

    def __init__(
        self,
        sizes_hw: Sequence[tuple[int, int]],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        chunk_batches: int = 32,
    ):
        if batch_size < 1 or chunk_batches < 1:
            raise ValueError(
                f"expected batch_size and chunk_batches of at least 1, got {batch_size} and {chunk_batches}."
            )
        for index, (height, width) in enumerate(sizes_hw):
            if height < 1 or width < 1:
                raise ValueError(f"sizes_hw[{index}]: expected (height, width) in pixels, got {(height, width)}.")
        self.log_ratios = [log(width / height) for height, width in sizes_hw]
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.drop_last, self.chunk_batches = drop_last, chunk_batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        count = len(self.log_ratios)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.log_ratios)))
        chunk = max(1, len(order))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator).tolist()
            chunk = self.batch_size * self.chunk_batches
        batches = []
        for start in range(0, len(order), chunk):
            alike = sorted(order[start : start + chunk], key=lambda index: self.log_ratios[index])
            batches += [alike[first : first + self.batch_size] for first in range(0, len(alike), self.batch_size)]
        if self.drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        if self.shuffle:
            batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        yield from batches
