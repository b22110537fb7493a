"""A batch's memory goes to the next batch, never away from one that somebody still holds."""

import gc

import numpy as np
import pytest
import torch

from hf_detr import DetrImageProcessor
from hf_detr.image_processing.memory import empty

CPU = torch.device("cpu")
SHAPE = (2, 3, 400, 500)  # 4.6 MiB in float32


@pytest.fixture(autouse=True)
def nothing_spare(monkeypatch):
    monkeypatch.setattr("hf_detr.image_processing.memory._spare", {})


def test_freed_memory_is_used_again():
    first = empty(SHAPE, torch.float32, CPU)
    address = first.data_ptr()
    del first
    smaller = empty((2, 3, 300, 500), torch.float32, CPU)
    assert smaller.data_ptr() == address
    assert smaller.shape == (2, 3, 300, 500)
    assert smaller.is_contiguous()


@pytest.mark.parametrize(
    "hold", [lambda t: t[1:, :2], lambda t: t.numpy(), lambda t: np.asarray(t)[0], lambda t: t.untyped_storage()]
)
def test_memory_that_anything_holds_is_not_used_again(hold):
    first = empty(SHAPE, torch.float32, CPU).fill_(7)
    address = first.data_ptr()
    held = hold(first)
    del first
    gc.collect()
    second = empty(SHAPE, torch.float32, CPU).fill_(1)
    assert second.data_ptr() != address
    del held
    del second


def test_memory_is_kept_for_its_kind_and_size_alone():
    addresses = set()
    for shape, dtype in ((SHAPE, torch.float32), (SHAPE, torch.int64), ((2, 3, 100, 500), torch.float32)):
        tensor = empty(shape, dtype, CPU)
        assert tensor.dtype == dtype
        assert tensor.shape == shape
        addresses.add(tensor.data_ptr())
        keep = empty((1, 3, 700, 500), dtype, CPU)  # so that nothing new comes to lie where the last was freed
        del tensor, keep
    assert len(addresses) == 3


def test_batches_that_are_held_keep_their_pixels():
    rng = np.random.default_rng(0)
    processor = DetrImageProcessor(size={"shortest_edge": 500, "longest_edge": 800})
    pictures = [rng.integers(0, 256, (300, 400, 3), dtype=np.uint8) for _ in range(4)]
    alone = [processor(picture, return_tensors="pt").pixel_values.clone() for picture in pictures]
    held = [processor(picture, return_tensors="pt") for picture in pictures]
    for batch, pixel_values in zip(held, alone, strict=True):
        assert torch.equal(batch.pixel_values, pixel_values)
        assert batch.pixel_mask.all()


def test_padding_is_zero_whatever_lay_there_before():
    white = np.full((500, 600, 3), 255, dtype=np.uint8)
    processor = DetrImageProcessor(size={"shortest_edge": 500, "longest_edge": 600})
    processor([white, white], return_tensors="pt")
    batch = processor([white, white[:, :300]], return_tensors="pt")
    padding = batch.pixel_mask[:, None].expand_as(batch.pixel_values) == 0
    assert padding.any()
    assert (batch.pixel_values[padding] == 0).all()
