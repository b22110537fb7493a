"""Work that overlaps with the model's."""

import threading
import time

import pytest
import torch

from hf_detr.cli._running import in_order, is_quicker_in_bf16, run_ahead


def test_items_are_made_in_order_before_they_are_asked_for_and_no_further_ahead():
    made = []

    def items():
        for number in range(6):
            made.append(number)
            yield number

    taken, deadline = [], time.monotonic() + 20
    for number in run_ahead(items(), ahead=2):
        taken.append(number)
        while len(made) < min(number + 2, 6):  # the model's time
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert len(made) <= number + 3  # this one and two more
    assert taken == made == list(range(6))


def test_an_error_comes_out_where_its_item_would_and_no_thread_stays():
    def items():
        yield 1
        raise ValueError("picture 2")

    before = threading.active_count()
    ahead = run_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="picture 2"):
        next(ahead)
    assert threading.active_count() == before


def test_those_who_take_no_more_end_the_work():
    ended = []

    def items():
        try:
            yield from in_order(lambda number: number * 2, range(1000), threads=2)
        finally:
            ended.append(True)

    before = threading.active_count()
    ahead = run_ahead(items())
    assert [next(ahead), next(ahead)] == [0, 2]
    ahead.close()
    assert ended == [True]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("capabilities", "groups", "quicker"),
    [
        ({"avx512_bf16": True}, 1, True),
        ({"amx_bf16": True}, 1, True),
        ({"avx512_bf16": True}, 4, False),
        ({"avx2": True, "avx512_bf16": False}, 1, False),
    ],
)
def test_bf16_is_chosen_where_processor_and_model_are_quicker_with_it(monkeypatch, capabilities, groups, quicker):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert is_quicker_in_bf16(torch.nn.Conv2d(4, 4, 3, groups=groups), on_gpu=False) is quicker
