"""A queue in front of one thread that has the model: what waits together is worked on together."""

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

Work = Callable[[Sequence[Any]], Sequence[Any]]


class _Job(NamedTuple):
    kind: tuple[Work, Hashable]
    item: Any
    future: Future


class BatchingQueue:
    """Calls `work(items)`, which gives a result an item, in one thread, with up to `batch_size` items of one key.

    Nothing waits for company: a first item is worked on at once, and what has come until that is done goes together,
    the oldest first. A batch that fails is tried again item by item, so that one item's error is not that of others.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, work: Work, item: Any, key: Hashable = None) -> Future:
        """The future result of an item. RuntimeError after `close`."""
        job = _Job((work, key), item, Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed.")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finishes what waits, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._work(batch)

    def _next(self) -> list[_Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch = [job for job in self._waiting if job.kind == self._waiting[0].kind][: self._batch_size]
            taken = set(map(id, batch))
            self._waiting = [job for job in self._waiting if id(job) not in taken]
        return batch

    def _work(self, batch: list[_Job]) -> None:
        try:
            results = batch[0].kind[0]([job.item for job in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for job in batch:
                    self._work([job])
            return
        for job, result in pairs:
            job.future.set_result(result)
