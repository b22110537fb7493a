import threading

import pytest

from hf_detr.serving.batching import BatchingQueue


class Recorder:
    """Work that notes its batches, and waits until it may begin."""

    def __init__(self):
        self.batches, self.has_begun, self.may_begin = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.has_begun.set()
        self.may_begin.wait(30)
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


def test_what_waits_together_is_worked_on_together_by_key_and_oldest_first():
    work, queue = Recorder(), BatchingQueue(3)
    first = queue.submit(work, "a", 1)
    work.has_begun.wait(30)
    futures = [queue.submit(work, item, key) for item, key in zip("bcdefg", (2, 1, 2, 2, 2, 1), strict=True)]
    work.may_begin.set()
    assert [future.result(30) for future in [first, *futures]] == [2 * item for item in "abcdefg"]
    assert work.batches == [["a"], ["b", "d", "e"], ["c", "g"], ["f"]]
    queue.close()


def test_an_error_is_that_of_its_item_alone():
    work, queue = Recorder(), BatchingQueue(8)
    queue.submit(work, "first")
    futures = [queue.submit(work, item) for item in ("good", "bad", "fine")]
    work.may_begin.set()
    assert [futures[0].result(30), futures[2].result(30)] == ["goodgood", "finefine"]
    with pytest.raises(ValueError, match="bad"):
        futures[1].result(30)
    queue.close()


def test_closing_finishes_what_waits_and_takes_no_more():
    work, queue = Recorder(), BatchingQueue(2)
    futures = [queue.submit(work, item) for item in "abcde"]
    work.may_begin.set()
    queue.close()
    assert [future.result(0) for future in futures] == ["aa", "bb", "cc", "dd", "ee"]
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(work, "f")
