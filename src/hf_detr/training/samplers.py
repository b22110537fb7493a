"""Which image comes when, and with which random numbers: all from seed, epoch and index, so that a run can resume."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from ..data.random_numbers import mixed, seeded
from ..data.sampler import AspectRatioBatchSampler


class ReproducibleSamples(Dataset):
    """A map-style data set whose random augmentation of an image follows from `seed`, the epoch and its index alone.

    Neither worker processes, nor batches fetched ahead, nor a resumed run change it; and loading images draws none of
    the training's own random numbers (dropout). Python's, NumPy's and torch's global generators are seeded for each
    image; an augmentation with a generator of its own must seed it from one of these.

    `closing` is the same data set with the augmentation of the last part of a training.

    Indices come from `EpochOrder` and carry the pass over the data, and whether it is the last part: (2 * pass +
    closing) * len + index. Nothing else reaches worker processes that live longer than an epoch.
    """

    def __init__(self, dataset: Any, seed: int, closing: Any = None):
        self.dataset, self.seed, self.closing = dataset, seed, closing
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next order; data loaders call this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> Any:
        turn, index = divmod(place, len(self.dataset))
        number, is_closing = divmod(turn, 2)
        with self.random_numbers(number, index):
            return (self.closing if is_closing else self.dataset)[index]

    def random_numbers(self, number: int, index: int) -> AbstractContextManager[None]:
        """Within, all random numbers are those that the image of this index is augmented with in the pass of this
        number: the epoch, unless an epoch has several."""
        return seeded(self.seed, number, index)


class EpochOrder(Sampler[int]):
    """Every image once an epoch, shuffled by seed and epoch, or in order; for `ReproducibleSamples`.

    With `repeats`, every image so often an epoch, one after the other, each time augmented otherwise (Hoffer et al.
    2020). `is_closing`, if it is set, tells of an epoch and a position in it whether `closing` samples are due there.

    With `sizes_hw`, (height, width) of each image, consecutive `batch_size` images have like shapes: aspect ratios, and
    with `final_hw`, the `DetectionTransform.final_hw` of the samples, sizes after augmentation. Of several processes
    that share the images batch by batch, let `batch_size` be that of all: their batches then are alike, too, and none
    waits for another in a step.
    """

    # No set_epoch of its own: Accelerate hands the epoch to the sampler or else to the data set, and only the latter
    # is also reached in a resumed epoch of several processes.

    def __init__(
        self,
        samples: ReproducibleSamples,
        shuffle: bool = True,
        sizes_hw: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 1,
        final_hw: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
        repeats: int = 1,
    ):
        self.samples, self.shuffle, self.repeats = samples, shuffle, repeats
        self.is_closing: Callable[[int, int], bool] | None = None
        self.by_shape = None
        if sizes_hw is not None:

            def augmented_hw(epoch: int, index: int) -> tuple[int, int]:
                with samples.random_numbers(epoch * repeats, index):
                    return final_hw(sizes_hw[index])

            self.by_shape = AspectRatioBatchSampler(
                sizes_hw, max(1, batch_size // repeats), shuffle, samples.seed, final_hw=final_hw and augmented_hw
            )

    def __len__(self) -> int:
        return len(self.samples) * self.repeats

    def __iter__(self) -> Iterator[int]:
        epoch, count = self.samples.epoch, len(self.samples)
        order: Iterable[int] = range(count)
        if self.by_shape is not None:
            self.by_shape.set_epoch(epoch)
            order = (index for batch in self.by_shape for index in batch)
        elif self.shuffle:
            generator = torch.Generator().manual_seed(mixed(self.samples.seed, epoch))
            order = torch.randperm(count, generator=generator).tolist()
        turns = ((epoch * self.repeats + turn, index) for index in order for turn in range(self.repeats))
        for position, (number, index) in enumerate(turns):
            is_closing = self.is_closing is not None and self.is_closing(epoch, position)
            yield (2 * number + is_closing) * count + index
