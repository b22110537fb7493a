"""A batch's memory goes to the processor's next batch, never away from one that somebody still holds."""

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hf_detr import DetrImageProcessor
from hf_detr.image_processing.canvas_buffer import CanvasBuffer

CPU = torch.device("cpu")
SHAPE = (2, 3, 400, 500)  # 4.6 MiB in float32


@pytest.fixture
def buffer():
    return CanvasBuffer()


def test_freed_memory_is_used_again(buffer):
    first = buffer.empty(SHAPE, torch.float32, CPU)
    address = first.data_ptr()
    del first
    smaller = buffer.empty((2, 3, 300, 500), torch.float32, CPU)
    assert smaller.data_ptr() == address
    assert smaller.shape == (2, 3, 300, 500)
    assert smaller.is_contiguous()


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t[1:, :2],
        lambda t: t.numpy(),
        lambda t: np.asarray(t)[0],
        lambda t: t.untyped_storage(),
        lambda t: torch.utils.dlpack.to_dlpack(t),
        lambda t: memoryview(t.numpy()),
        lambda t: t.detach(),
    ],
)
def test_memory_that_anything_holds_is_not_used_again(buffer, hold):
    first = buffer.empty(SHAPE, torch.float32, CPU).fill_(7)
    address = first.data_ptr()
    held = hold(first)
    del first
    gc.collect()
    second = buffer.empty(SHAPE, torch.float32, CPU).fill_(1)
    assert second.data_ptr() != address
    del held
    del second


def test_memory_is_kept_for_its_dtype_and_size_alone(buffer):
    del_at_once = buffer.empty(SHAPE, torch.float32, CPU)
    address = del_at_once.data_ptr()
    del del_at_once
    block = buffer._blocks[torch.float32]  # held, so that nothing new comes to lie there
    for shape, dtype in (
        (SHAPE, torch.int64),
        (SHAPE, torch.float64),
        ((2, 3, 100, 500), torch.float32),  # less than half of it
        ((2, 3, 500, 500), torch.float32),  # more than it
        ((10, 10), torch.float32),  # too small to care
    ):
        tensor = buffer.empty(shape, dtype, CPU)
        assert tensor.dtype == dtype
        assert tensor.shape == shape
        assert tensor.data_ptr() != address
        buffer._blocks[torch.float32] = block
    assert buffer.empty(SHAPE, torch.float32, CPU).data_ptr() == address


def large_processor():
    return DetrImageProcessor(size={"shortest_edge": 500, "longest_edge": 800})


def large_images(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (300, 400, 3), dtype=np.uint8) for _ in range(count)]


def test_batches_that_are_held_keep_their_pixels():
    processor, images = large_processor(), large_images(4)
    alone = [processor(image, return_tensors="pt").pixel_values.clone() for image in images]
    held = [processor(image, return_tensors="pt") for image in images]
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


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda processor: pickle.loads(pickle.dumps(processor))])
def test_a_copied_processor_has_memory_of_its_own(copied):
    processor, image = large_processor(), large_images(1)[0]
    unused = len(pickle.dumps(processor))
    expected = processor(image, return_tensors="pt").pixel_values.clone()  # leaves a block behind
    assert len(pickle.dumps(processor)) == unused
    again = copied(processor)
    one, other = (p(image, return_tensors="pt").pixel_values for p in (processor, again))
    one.zero_()
    assert torch.equal(other, expected)


def test_a_processor_gives_its_memory_back_when_it_goes():
    processor = large_processor()
    blocks = processor._buffer._blocks
    values = processor(large_images(1)[0], return_tensors="pt").pixel_values
    expected = values.clone()
    del processor
    gc.collect()
    assert torch.equal(values, expected)
    del values
    assert gc.get_referrers(blocks) == [] or all(not isinstance(one, CanvasBuffer) for one in gc.get_referrers(blocks))


def test_threads_that_share_a_processor_get_their_own_pixels():
    processor, images = large_processor(), large_images(4)
    alone = [processor(image, return_tensors="pt").pixel_values.clone() for image in images]

    def encode(i):
        values = processor(images[i % 4], return_tensors="pt").pixel_values
        return torch.equal(values, alone[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, range(40)))
