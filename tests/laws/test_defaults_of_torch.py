"""Law 14, processor side: another default device or dtype changes nothing that the processor and its data path give."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_detr import DetectionCollator, DetectionTransform, DetrImageProcessor

SIZE = {"shortest_edge": 32, "longest_edge": 64}


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "with torch.device('meta')": lambda: torch.device("meta"),
    "set_default_device('meta')": lambda: default_device("meta"),
    **{
        str(dtype): lambda dtype=dtype: default_dtype(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)
    },
}


def rows():
    rng = np.random.default_rng(0)
    for image_id, (height, width) in enumerate([(40, 60), (90, 33), (600, 700)]):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        masks = [[[4, 4, 24, 4, 24, 30, 4, 30]], {"size": [height, width], "counts": [height * width]}]
        objects = {"bbox": [[3, 4, 20, 30], [1.5, 2, 9, 9]], "category": [0, 2], "area": [None, 50.0]}
        objects |= {"iscrowd": [0, 0], "segmentation": masks}
        yield {"image": image, "image_id": image_id, "width": width, "height": height, "objects": objects}


def encoded(**settings):
    images = [row["image"] for row in rows()]
    processor = DetrImageProcessor(size=SIZE, **settings)
    batch = processor(images, list(rows()), return_segmentation_masks=True, return_tensors="pt")
    return [batch["pixel_values"], batch["pixel_mask"], *(value for one in batch["labels"] for value in one.values())]


def kinds_of_images():
    array = np.array(next(rows())["image"])
    chw = torch.from_numpy(array.transpose(2, 0, 1).copy())
    kinds = [array, array / 255.0, chw, array.astype(np.uint16) * 257, Image.fromarray(array).convert("P")]
    processor = DetrImageProcessor(size={"height": 20, "width": 30}, do_rescale=False, resample=3)
    return [processor(kind, return_tensors="pt")["pixel_values"] for kind in kinds]


def augmented():
    torch.manual_seed(0)
    transform = DetectionTransform(DetrImageProcessor(size=SIZE), augment="paper")
    samples = []
    for row in rows():
        row["objects"].pop("segmentation")
        transformed = transform({name: [value] for name, value in row.items()})
        samples.append({name: values[0] for name, values in transformed.items()})
    batch = DetectionCollator()(samples)
    return [batch["pixel_values"], batch["pixel_mask"], *(value for one in batch["labels"] for value in one.values())]


def detected():
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        logits=torch.randn(2, 50, 6, generator=generator, dtype=torch.float32, device="cpu"),
        pred_boxes=torch.rand(2, 50, 4, generator=generator, dtype=torch.float32, device="cpu"),
    )
    processor, found = DetrImageProcessor(), []
    for options in ({}, {"threshold": None}, {"top_k": 5, "nms_iou_threshold": 0.3, "class_thresholds": [0.2] * 5}):
        for sizes in (None, [(480, 640), (33, 900)]):
            found += processor.post_process_object_detection(outputs, target_sizes=sizes, **options)
    return [value for one in found for value in one.values()]


@pytest.mark.parametrize("work", [encoded, kinds_of_images, augmented, detected])
@pytest.mark.parametrize("default", DEFAULTS)
def test_another_default_device_or_dtype_changes_nothing(work, default):
    expected = work()
    with DEFAULTS[default]():
        got = work()
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one.device, one.dtype) == (other.device, other.dtype)
        assert torch.equal(one, other)


class _Samples(torch.utils.data.Dataset):
    def __init__(self):
        self.rows = list(rows())
        self.processor = DetrImageProcessor(size={"shortest_edge": 500, "longest_edge": 600})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        batch = self.processor(self.rows[index]["image"], self.rows[index], return_tensors="pt", do_pad=False)
        return {"pixel_values": batch["pixel_values"][0], "labels": dict(batch["labels"][0])}


def test_workers_of_a_data_loader_give_what_the_process_itself_gives():
    samples = _Samples()
    assert len([samples[i] for i in range(3)]) == 3  # leaves memory behind, which forked workers get a copy of
    loaders = [DataLoader(samples, 3, collate_fn=DetectionCollator(), num_workers=workers) for workers in (0, 2)]
    batches = [[*loader, *loader] for loader in loaders]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["pixel_mask"], other["pixel_mask"])
