"""Each symptom of the page on troubleshooting exists: it is made here, or where a comment below its heading says."""

import os
import re
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import pipeline

import hf_detr
from hf_detr import (
    DetectionCollator,
    DetectionTransform,
    DetrForObjectDetection,
    DetrImageProcessor,
    check_dataset,
    evaluate_model,
    parameter_groups,
    shape_scenes,
    transform_dataset,
)
from hf_detr.data.schema import id2label
from hf_detr.training.health import QueryCollapse
from hf_detr.training.samplers import ReproducibleSamples
from tests.small_models import small_model

from .pages import ROOT, blocks, text


def test_every_symptom_has_a_test_that_makes_it():
    sections = re.split(r"^## ", text("troubleshooting.md"), flags=re.MULTILINE)[1:]
    assert len(sections) == 10
    for section in sections:
        made = re.match(r".+\n\n<!-- made by (tests/[\w/]+\.py)::(test_\w+) -->\n", section)
        assert made, section[:40]
        assert f"def {made[2]}(" in (ROOT / made[1]).read_text(encoding="utf-8"), made[0]


def test_what_can_be_made_in_a_few_lines_is_as_the_page_shows_it(capsys):
    names: dict = {}
    for block in blocks("troubleshooting.md", "python"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert float(re.search(r"differ by up to ([\d.]+)", printed)[1]) > 0.1
    assert "class label 10 is outside 0 to 9" in printed
    assert "predictions are not finite" in printed
    assert "divide pixels by the image's size" in printed


def test_equal_object_queries_are_the_collapse_that_is_warned_of():
    model = small_model()
    model.model.query_position_embeddings.weight.data[:] = model.model.query_position_embeddings.weight.data[:1]
    outputs = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    collapse = QueryCollapse()
    collapse.add(outputs.logits, outputs.pred_boxes)
    with pytest.warns(UserWarning, match="queries have collapsed"):
        collapse.warn("here")


@pytest.fixture
def beginner():
    """A model from random weights, its processor, rows, and the losses of its first thirty steps."""
    torch.manual_seed(0)
    rows, processor = shape_scenes(8, image_size=64), DetrImageProcessor(size={"height": 64, "width": 64})
    model = small_model(id2label=id2label(rows), freeze_backbone_norms=False, freeze_backbone_until=None)
    batch = DetectionCollator()(list(transform_dataset(rows, DetectionTransform(processor))))
    optimizer, history = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-3)), []
    model.train()
    for _ in range(30):
        outputs = model(**batch)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        history.append({name: value.item() for name, value in outputs.loss_dict.items()})
    return model.eval(), processor, rows, history


def test_a_beginner_has_most_classes_wrong_and_no_ap_while_its_loss_falls(beginner):
    model, processor, rows, history = beginner
    assert history[-1]["loss_ce"] < 0.8 * history[0]["loss_ce"]
    assert np.mean([entry["class_error"] for entry in history[-10:]]) > 50
    nothing = [{"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]
    empty = model(torch.zeros(1, 3, 64, 64), labels=nothing)
    assert empty.loss_dict["class_error"] == 100
    assert evaluate_model(model, processor, rows).compute()["map"] < 0.05


def test_corners_read_as_sizes_reach_out_of_their_images_and_check_says_so():
    rows = shape_scenes(6)
    corners = [[[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]] for objects in rows["objects"]]
    shifted = [{**row, "objects": {**row["objects"], "bbox": boxes}} for row, boxes in zip(rows, corners, strict=True)]
    data = Dataset.from_list(shifted, features=rows.features)
    assert "outside" in check_dataset(data).text()
    assert not check_dataset(data, bbox_format="xyxy").errors


def _kept_bytes(model: torch.nn.Module, *sizes_hw: tuple[int, int]) -> int:
    """What a forward pass of a batch of images of these sizes keeps for the backward pass."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    batch = DetectionCollator()([{"pixel_values": torch.zeros(3, *size)} for size in sizes_hw])
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(**batch)
    return kept


def test_a_tall_image_beside_a_wide_one_takes_twice_the_memory_until_there_is_none():
    model = small_model(freeze_backbone_norms=False, freeze_backbone_until=None)
    alike, unlike = _kept_bytes(model, (128, 256), (128, 256)), _kept_bytes(model, (128, 256), (256, 128))
    assert 1.8 * alike < unlike
    beyond_any_address = torch.zeros(1, 3, 1, 1).expand(1, 3, 2**23, 2**23)
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        model(beyond_any_address)


@pytest.mark.parametrize("source", ["numpy's own generator", "numpy's global one"])
def test_an_augmentation_with_a_generator_of_its_own_is_another_after_a_resume(source):
    processor, rows = DetrImageProcessor(size={"height": 64, "width": 64}), shape_scenes(3, image_size=64)

    def samples() -> ReproducibleSamples:
        """What a new process makes."""
        own = np.random.default_rng(0)
        draw: Callable[[], float] = own.random if source == "numpy's own generator" else np.random.random

        def dim(row: dict) -> dict:
            table = [int(value * share) for share in (draw(),) for value in range(256)]
            return {**row, "image": row["image"].point(table * 3)}

        return ReproducibleSamples(transform_dataset(rows, DetectionTransform(processor, [dim])), seed=0)

    undisturbed, resumed = samples(), samples()
    first_epoch = [undisturbed[place]["pixel_values"] for place in range(3)]
    assert len(first_epoch) == 3
    second_epoch = [undisturbed[place]["pixel_values"] for place in range(6, 9)]  # see `ReproducibleSamples`
    again = [resumed[place]["pixel_values"] for place in range(6, 9)]
    same = all(torch.equal(*pair) for pair in zip(second_epoch, again, strict=True))
    assert same == (source == "numpy's global one")


def test_stock_shows_nothing_of_a_young_model_at_its_threshold(tmp_path):
    torch.manual_seed(0)
    names = id2label(shape_scenes(1))  # five classes that it has still to learn
    young = DetrForObjectDetection.from_pretrained(hf_detr.tiny_checkpoint(), id2label=names)
    young.save_pretrained(tmp_path)
    DetrImageProcessor.from_pretrained(hf_detr.tiny_checkpoint()).save_pretrained(tmp_path)
    image = shape_scenes(1, split="test", image_size=96)[0]["image"]
    detect = pipeline("object-detection", model=str(tmp_path), device="cpu")
    assert detect(image) == []
    assert detect(image, threshold=0.001)


class _Killed(torch.utils.data.Dataset):
    """Its worker ends as one that the system kills for its memory."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_is_the_death_of_the_dataloader():
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(DataLoader(_Killed(), num_workers=1))
