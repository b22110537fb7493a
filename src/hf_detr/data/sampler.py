"""Batches of images of like shape: less padding, so less to compute."""

from collections.abc import Callable, Iterator, Sequence
from math import log, sqrt

import torch
from torch.utils.data import Sampler

Size = tuple[int, int]


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Batches of indices of images of like shape, each image exactly once an epoch.

        sampler = AspectRatioBatchSampler(list(zip(dataset["height"], dataset["width"])), batch_size=4)
        DataLoader(dataset, batch_sampler=sampler, collate_fn=DetectionCollator())

    Images are shuffled, and in turn from every `chunk_batches` batches of them batches of like images are made, in
    random order: nearly as random as without, and following from `seed` and the epoch (`set_epoch`) alone. Without
    `shuffle`, images are sorted over the whole set. The last batch may be smaller; `drop_last` leaves it out.

    `DetrTrainer` has its own (`group_by_aspect_ratio=True`). With `transformers.Trainer` and with Accelerate, each
    process gets every n-th batch, all of them equally many, the first images again where they would not:

        class GroupingTrainer(Trainer):
            def get_train_dataloader(self):
                loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator,
                                    num_workers=self.args.dataloader_num_workers)
                return self.accelerator.prepare(loader)

    There they set the epoch, but for one case: where several processes resume in the middle of an epoch, call
    `set_epoch` yourself.

    Args:
        sizes_hw: (height, width) of every image, in pixels. Where nothing more is known it is taken that all will be
            resized to one shortest edge, so only the ratio counts.
        final_hw: the (height, width) that the image of this index will have in the epoch of this number, for
            augmentations that change sizes at random: then images of one batch are alike in ratio and in area.
        chunk_batches: more means less padding, and batches that are less random.

    Raises:
        ValueError: for impossible numbers.
    """

    def __init__(
        self,
        sizes_hw: Sequence[Size],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        chunk_batches: int = 32,
        final_hw: Callable[[int, int], Size] | None = None,
    ):
        if batch_size < 1 or chunk_batches < 1:
            raise ValueError(
                f"expected batch_size and chunk_batches of at least 1, got {batch_size} and {chunk_batches}."
            )
        for index, (height, width) in enumerate(sizes_hw):
            if height < 1 or width < 1:
                raise ValueError(f"sizes_hw[{index}]: expected (height, width) in pixels, got {(height, width)}.")
        self.sizes_hw, self.final_hw = sizes_hw, final_hw
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.drop_last, self.chunk_batches = drop_last, chunk_batches
        self.epoch = 0

    @property
    def sampler(self) -> "AspectRatioBatchSampler":
        """Itself: of several processes, Accelerate tells the epoch to the sampler of a batch sampler only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        count = len(self.sizes_hw)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.sizes_hw)))
        if not self.shuffle:
            yield from self._complete(self._batches_of_like(order))
            return
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(order), generator=generator).tolist()
        chunk = self.batch_size * self.chunk_batches
        # chunk by chunk, so that final sizes are worked out as they are needed
        for start in range(0, len(order), chunk):
            batches = self._batches_of_like(order[start : start + chunk])
            # one that is not full stays last: those who share the batches among processes count on it
            num_full = len(batches) - (len(batches[-1]) < self.batch_size)
            turns = torch.randperm(num_full, generator=generator).tolist()
            yield from self._complete([batches[turn] for turn in turns] + batches[num_full:])

    def _complete(self, batches: list[list[int]]) -> list[list[int]]:
        return [batch for batch in batches if not self.drop_last or len(batch) == self.batch_size]

    def _batches_of_like(self, indices: list[int]) -> list[list[int]]:
        """The images of these indices in batches; only the last may be smaller."""
        sizes = {index: self.sizes_hw[index] for index in indices}
        if self.final_hw is not None:
            sizes = {index: self.final_hw(self.epoch, index) for index in indices}
        indices = sorted(indices, key=lambda index: log(sizes[index][1] / sizes[index][0]))
        if self.final_hw is not None:
            # as many groups by ratio as batches in each: what is left of either difference is alike
            num_batches = len(indices) / self.batch_size
            group = self.batch_size * max(1, round(sqrt(num_batches)))
            groups = [indices[start : start + group] for start in range(0, len(indices), group)]
            indices = [i for one in groups for i in sorted(one, key=lambda index: sizes[index][0] * sizes[index][1])]
        return [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
