"""Batches of a stream, pass after pass: each row once a pass, and after a resume the next row, not the first.

The position in the stream travels with each batch, so that what workers have read ahead does not count as trained on.
It is `datasets`' own `state_dict` of each worker's share. A shuffle buffer is not in that state (`datasets` says so),
nor are the random numbers of a map in batches: where there is one, and with `datasets` before 5.2, whose state does not
lead to the same row, a resumed run reads the pass again up to there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, get_worker_info
from transformers import TrainerCallback

from ..data.random_numbers import seeded
from ..data.streams import share_of_stream, useful_workers


class StreamBatches:
    """One process's batches of `stream`, on `device`, without end: a new pass begins where the last one has ended.

    Processes and workers read disjoint shares that together are the stream. Random augmentation follows from `seed`,
    pass, process, worker and number of the row, and draws none of the training's random numbers. `make_loader` makes a
    data loader of a torch IterableDataset and the options batch_size, num_workers, collate_fn.

    `epochs` are the passes whose end the trainer has told its callbacks. With `is_epoch_over` the next has ended: of
    several processes, when each is through; those that were through before have begun their next pass meanwhile.

    Raises:
        ValueError: a stream that `datasets` cannot divide among several processes; one without rows; a position saved
            with other numbers of processes or workers.
    """

    def __init__(
        self,
        stream: Any,
        make_loader: Callable[..., DataLoader],
        collate: Callable[[Sequence[Mapping]], Any],
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        drop_last: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
        device: torch.device | str = "cpu",
        non_blocking: bool = False,
    ):
        self._stream = share_of_stream(stream, process_index, num_processes)
        self._make_loader, self._collate = make_loader, _CollateRows(collate)
        self._batch_size, self._drop_last, self._seed = batch_size, drop_last, (seed, process_index)
        self._num_processes, self._num_workers = num_processes, useful_workers(self._stream, num_workers)
        self._device, self._non_blocking = device, non_blocking
        self._positions: dict[str, dict] = {}  # worker -> its own in this pass
        self._last_worker = -1
        self._batches = self._read()
        self.passes = 0  # that this process has ended
        self.epochs, self.epoch_began_at = 0, 0  # the latter an optimizer step
        self.is_epoch_over = False

    def __iter__(self) -> "StreamBatches":
        return self  # the trainer asks once an epoch, and goes on where it stands

    def __next__(self) -> Any:
        return next(self._batches)

    def begin_epoch(self, step: int) -> None:
        """The next epoch, at this optimizer step."""
        self.epochs, self.epoch_began_at, self.is_epoch_over = self.epochs + 1, step, False

    def state_dict(self, step: int) -> dict[str, Any]:
        """Where the training stands after the last batch handed out, for JSON; `step` is the optimizer's."""
        return {
            "num_processes": self._num_processes,
            "num_workers": self._num_workers,
            "passes": self.passes,
            "epochs": self.epochs + self.is_epoch_over,
            "epoch_began_at": step if self.is_epoch_over else self.epoch_began_at,
            "last_worker": self._last_worker,
            "workers": self._positions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        for name, now in (("processes", self._num_processes), ("workers", self._num_workers)):
            if state[f"num_{name}"] != now:
                raise ValueError(
                    f"the stream was read by {state[f'num_{name}']} {name} and is to be read by {now}, which gives its "
                    "rows in another order; resume with as many (dataloader_num_workers), or begin a new pass with "
                    "ignore_data_skip=True."
                )
        self.passes, self.epochs, self.epoch_began_at = state["passes"], state["epochs"], state["epoch_began_at"]
        self._last_worker, self._positions = state["last_worker"], dict(state["workers"])

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()

    def _read(self) -> Iterator[Any]:
        for number in count(self.passes):
            if hasattr(self._stream, "set_epoch"):
                self._stream.set_epoch(number)
            reader = _Reader(
                self._stream,
                self._batch_size,
                self._drop_last,
                (*self._seed, number),
                (self._last_worker + 1) % max(self._num_workers, 1),
                dict(self._positions),
            )
            loader = self._make_loader(reader, batch_size=None, num_workers=self._num_workers, collate_fn=self._collate)
            batches = (one for one in loader if one is not None)
            current = next(batches, None)
            if current is None:
                raise ValueError(
                    f"train_dataset: pass {number + 1} of the stream gave this process no batch; give it more rows "
                    "than there are processes."
                )
            while current is not None:
                following = next(batches, None)  # tells whether this is the last
                batch, worker, position = current
                if following is None:
                    self.passes, self._positions, self._last_worker = number + 1, {}, -1
                else:
                    self._positions[str(worker)], self._last_worker = position, worker
                yield send_to_device(batch, self._device, non_blocking=self._non_blocking)
                current = following


class TellEpoch(TrainerCallback):
    """Counts epochs of a stream as Transformers does, passes and a share of `max_steps`, in a resumed run as well."""

    def __init__(self, stream: Callable[[], StreamBatches | None]):
        self._stream = stream

    def on_step_end(self, args, state, control, **kwargs):
        """Before the step is logged."""
        stream = self._stream()
        if stream is not None:
            state.epoch = stream.epochs + (state.global_step - stream.epoch_began_at) / state.max_steps


class _Reader(torch.utils.data.IterableDataset):
    """One pass in a worker: (rows of a batch, the worker, its position after them).

    Data loaders ask their workers in turn, beginning with the first. After a resume the turn is `first_worker`'s, so
    those before it give None the first time.
    """

    def __init__(
        self,
        stream: Any,
        batch_size: int,
        drop_last: bool,
        seed: tuple[int, ...],
        first_worker: int,
        positions: Mapping[str, Mapping],
    ):
        self.stream, self.batch_size, self.drop_last = stream, batch_size, drop_last
        self.seed, self.first_worker, self.positions = seed, first_worker, positions

    def __iter__(self) -> Iterator[tuple[list, int, dict] | None]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        if worker < self.first_worker:
            yield None
        position = self.positions.get(str(worker), {"rows": 0, "state": None})
        number, state = position["rows"], position["state"]
        if state is not None:
            self.stream.load_state_dict(state)
        rows = self._rows(worker, 0 if state is None else number)
        if state is None:
            for _ in range(number):  # again, to the position
                next(rows)
        tells_state = hasattr(self.stream, "load_state_dict") and _state_is_all(self.stream)
        while batch := list(islice(rows, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            number += len(batch)
            yield batch, worker, {"rows": number, "state": self.stream.state_dict() if tells_state else None}

    def _rows(self, worker: int, number: int) -> Iterator[Any]:
        """Each with the random numbers of its own number."""
        rows, end = iter(self.stream), object()
        while True:
            with seeded(*self.seed, worker, number):
                row = next(rows, end)
            if row is end:
                return
            yield row
            number += 1


class _CollateRows:
    """The collator, on the rows of what `_Reader` gives."""

    def __init__(self, collate: Callable[[Sequence[Mapping]], Any]):
        self.collate = collate

    def __call__(self, read: tuple[list, int, dict] | None) -> tuple[Any, int, dict] | None:
        return None if read is None else (self.collate(read[0]), *read[1:])


def _state_is_all(stream: Any) -> bool:
    """Whether the rows to come follow from the stream's `state_dict`; see above."""
    if tuple(map(int, datasets.__version__.split(".")[:2])) < (5, 2):
        return False
    stages = [getattr(stream, "_ex_iterable", None)]  # nothing public tells it
    for stage in stages:
        if type(stage).__name__ == "BufferShuffledExamplesIterable" or getattr(stage, "batched", False):
            return False
        inner = (getattr(stage, "ex_iterable", None), *getattr(stage, "ex_iterables", ()))
        stages += [one for one in inner if one is not None]
    return True
