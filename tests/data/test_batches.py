import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hf_detr.data.collator import DetectionCollator
from hf_detr.data.sampler import AspectRatioBatchSampler


def item(height, width, channels=3, labels=True):
    row = {"pixel_values": torch.rand(channels, height, width) + 1}
    return {**row, "labels": {"boxes": torch.rand(2, 4), "class_labels": torch.tensor([0, 1])}} if labels else row


def test_pictures_are_padded_once_with_zeros_and_a_mask_of_what_is_picture():
    items = [item(20, 30), item(25, 10)]
    batch = DetectionCollator()(items)
    assert batch["pixel_values"].shape == (2, 3, 25, 30)
    assert batch["pixel_mask"].dtype == torch.int64
    for index, one in enumerate(items):
        h, w = one["pixel_values"].shape[1:]
        assert torch.equal(batch["pixel_values"][index, :, :h, :w], one["pixel_values"])
        assert batch["pixel_mask"][index].sum() == h * w == batch["pixel_mask"][index, :h, :w].sum()
        assert batch["pixel_values"][index].count_nonzero() == 3 * h * w
        assert torch.equal(batch["labels"][index]["boxes"], one["labels"]["boxes"])


def test_nothing_padded_means_no_mask():
    assert set(DetectionCollator()([item(20, 30), item(20, 30)])) == {"pixel_values", "labels"}
    assert set(DetectionCollator()([item(20, 30, labels=False)])) == {"pixel_values"}
    assert set(DetectionCollator(pad_to_multiple_of=10)([item(20, 30)])) == {"pixel_values", "labels"}


def test_shapes_can_be_multiples_or_fixed():
    batch = DetectionCollator(pad_to_multiple_of=32)([item(20, 33)])
    assert batch["pixel_values"].shape == (1, 3, 32, 64)
    assert batch["pixel_mask"].sum() == 20 * 33
    assert DetectionCollator(pad_size=(40, 50))([item(20, 33)])["pixel_values"].shape == (1, 3, 40, 50)
    with pytest.raises(ValueError, match=r"20 x 33 .* does not fit pad_size \(40, 32\)"):
        DetectionCollator(pad_size=(40, 32))([item(20, 33)])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"labels": {}}], "expected items with pixel_values.*remove_unused_columns=False"),
        ([item(4, 4), item(4, 4, labels=False)], "1 of 2 items have labels"),
        ([item(4, 4), item(4, 4, channels=1)], r"\[1, 3\] channels"),
    ],
)
def test_items_that_make_no_batch_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        DetectionCollator()(items)


def test_impossible_collators_are_refused():
    with pytest.raises(ValueError, match="not both"):
        DetectionCollator(pad_to_multiple_of=2, pad_size=(4, 4))
    with pytest.raises(ValueError, match="pad_to_multiple_of"):
        DetectionCollator(pad_to_multiple_of=0)


SIZES = [(10 + index % 7, 10 + index % 11) for index in range(103)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_picture_comes_once_an_epoch_and_the_length_is_exact(shuffle):
    sampler = AspectRatioBatchSampler(SIZES, 4, shuffle=shuffle, chunk_batches=5)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 26
    assert sorted(index for batch in batches for index in batch) == list(range(103))
    assert sorted(len(batch) for batch in batches) == [3] + [4] * 25
    dropped = AspectRatioBatchSampler(SIZES, 4, shuffle=shuffle, drop_last=True, chunk_batches=5)
    assert len(list(dropped)) == len(dropped) == 25
    assert {len(batch) for batch in dropped} == {4}
    assert list(AspectRatioBatchSampler([], 4)) == []


def test_batches_hold_pictures_of_like_shape():
    def spread(batches):
        ratios = [[SIZES[i][1] / SIZES[i][0] for i in batch] for batch in batches]
        return sum(max(one) - min(one) for one in ratios) / len(ratios)

    by_chance = torch.utils.data.BatchSampler(torch.randperm(103).tolist(), 4, False)
    assert spread(AspectRatioBatchSampler(SIZES, 4)) < spread(by_chance) / 4


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_that_is_not_full_comes_last(shuffle):
    for seed in range(5):
        lengths = [len(batch) for batch in AspectRatioBatchSampler(SIZES, 4, shuffle, seed, chunk_batches=5)]
        assert lengths == [4] * 25 + [3]


def test_where_final_sizes_are_told_little_is_padded():
    """Ratios that say nothing of what the sizes will be, which change with the epoch."""

    def final_hw(epoch, index):
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        height, width = torch.randint(100, 300, (2,), generator=generator).tolist()
        return height, width

    def padding(batches, epoch):
        sizes = [[final_hw(epoch, index) for index in batch] for batch in batches]
        canvases = sum(max(h for h, _ in one) * max(w for _, w in one) * len(one) for one in sizes)
        return canvases / sum(h * w for one in sizes for h, w in one) - 1

    told, blind = (AspectRatioBatchSampler([(3, 4)] * 512, 4, final_hw=one) for one in (final_hw, None))
    for epoch in range(2):
        told.set_epoch(epoch)
        assert sorted(index for batch in told for index in batch) == list(range(512))
        assert padding(told, epoch) < padding(blind, epoch) / 3


def shared(sampler, num_processes):
    """The loaders of each process, as Accelerate makes them; an image is its index."""
    loader = DataLoader(range(len(SIZES)), batch_sampler=sampler, collate_fn=list)
    return [
        prepare_data_loader(loader, num_processes=num_processes, process_index=index, put_on_device=False)
        for index in range(num_processes)
    ]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_of_accelerate_share_the_batches_and_none_lacks_one(num_processes):
    sampler = AspectRatioBatchSampler(SIZES, 4, chunk_batches=5)
    alone = list(sampler)
    shares = [list(loader) for loader in shared(sampler, num_processes)]
    assert {len(share) for share in shares} == {-(-len(sampler) // num_processes)}
    assert set().union(*(batch for share in shares for batch in share)) == set(range(len(SIZES)))
    extra = sum(len(batch) for share in shares for batch in share) - len(SIZES)
    assert extra == (-len(SIZES)) % (4 * num_processes) if num_processes > 1 else extra == 0
    for step in range(len(SIZES) // (4 * num_processes)):
        assert [share[step] for share in shares] == alone[step * num_processes : (step + 1) * num_processes]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_accelerate_hands_the_epoch_over(num_processes):
    sampler = AspectRatioBatchSampler(SIZES, 4)
    for loader in shared(sampler, num_processes):
        first, second = list(loader), list(loader)
        assert first != second
        loader.set_epoch(0)
        assert list(loader) == first
        loader.set_epoch(1)
        rest = skip_first_batches(loader, 2)
        sampler.set_epoch(1)  # as the docstring says, for several processes
        assert list(rest) == second[2:]


def test_orders_follow_from_seed_and_epoch():
    sampler, twin = AspectRatioBatchSampler(SIZES, 4, seed=1), AspectRatioBatchSampler(SIZES, 4, seed=1)
    first = list(sampler)
    assert first == list(twin)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"sizes_hw\[1\]"):
        AspectRatioBatchSampler([(1, 2), (0, 3)], 2)
    with pytest.raises(ValueError, match="batch_size"):
        AspectRatioBatchSampler([(1, 2)], 0)
