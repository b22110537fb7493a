"""Two processes are one process with both batches."""

import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from hf_detr.training import DetrTrainer
from tests.processes import in_two_processes

from .conftest import arguments, model, scenes, training_log, transformed


def _rows():
    """Unequal numbers of boxes in the two batches, and an image without any."""
    return scenes(4).map(lambda row: {"objects": {name: [] for name in row["objects"]}} if row["image_id"] == 1 else {})


def _one_step(folder: Path, batch_size: int, accumulate: int = 1) -> None:
    """Leaves losses, gradients and metrics of one step in `folder`."""
    args = arguments(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
        max_grad_norm=1e9,
        save_strategy="no",
        ddp_backend="gloo" if "RANK" in os.environ else None,
    )
    trainer = DetrTrainer(
        model(), args, train_dataset=transformed(_rows()), eval_dataset=transformed(scenes(5, "test"))
    )
    metrics = trainer.evaluate()
    predictions = trainer.predict(trainer.eval_dataset).predictions

    def record(self, closure=None):
        gradients = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
        if trainer.is_world_process_zero():
            torch.save(gradients, folder / "gradients.pt")

    with mock.patch.object(torch.optim.AdamW, "step", record):
        trainer.train()
    if trainer.is_world_process_zero():
        numbers = {"log": training_log(trainer), "metrics": metrics, "ids": [one["image_id"] for one in predictions]}
        (folder / "numbers.json").write_text(json.dumps(numbers))


def _process(rank: int, folder: Path, batch_size: int, accumulate: int) -> None:
    _one_step(folder, batch_size, accumulate)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_both_batches(tmp_path, batch_size, accumulate):
    """Law 6, for losses, gradients, AP and the evaluation's loss; each image is evaluated once."""
    one, two = tmp_path / "one", tmp_path / "two"
    _one_step(one, 4)
    in_two_processes(_process, two, batch_size, accumulate)

    expected, got = (json.loads((folder / "numbers.json").read_text()) for folder in (one, two))
    for name, value in expected["log"][0].items():
        if name.startswith("loss") or name == "grad_norm":
            assert got["log"][0][name] == pytest.approx(value, rel=1e-5), name
    for name, value in expected["metrics"].items():
        if "runtime" not in name and "per_second" not in name and "preparation" not in name:
            assert got["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert got["metrics"]["eval_num_images"] == 5
    assert got["metrics"]["eval_num_duplicates"] == 0
    assert got["ids"] == expected["ids"] == list(range(5))
    of_one, of_two = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert of_one.keys() == of_two.keys()
    for name, gradient in of_one.items():
        scale = float(gradient.abs().max().clamp(min=1))
        torch.testing.assert_close(of_two[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
