"""Augmentation that mixes images, that ends before the training does, and that is repeated."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_detr import DetectionCollator
from hf_detr.data.strong_augmentation import Mosaic
from hf_detr.training import TimeLimit
from hf_detr.training.rows import transform_of
from hf_detr.training.samplers import EpochOrder, ReproducibleSamples

from .conftest import model, scenes, trainer_maker, transformed
from .test_time_limit import Clock


class White:
    """Leaves every image white, and black in the closing."""

    @staticmethod
    def closing(row):
        return {**row, "image": Image.new("RGB", row["image"].size)}

    def final_hw(self, size_hw):
        return size_hw

    def __call__(self, row):
        return {**row, "image": Image.new("RGB", row["image"].size, "white")}


class Seen(DetectionCollator):
    """Notes of each batch whether it is black."""

    def __init__(self):
        super().__init__()
        self.black = []

    def __call__(self, items):
        batch = super().__call__(items)
        self.black += [bool(image.max() < 0) for image in batch["pixel_values"]]
        return batch


def test_augmentation_ends_with_the_step_that_is_due_whatever_the_epochs_and_accumulation(make_trainer):
    seen = Seen()
    settings = {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "augment_until": 0.5}
    trainer = make_trainer(rows=scenes(6), augment=White(), options={"data_collator": seen}, **settings)
    trainer.train()
    assert trainer.state.global_step == 6
    assert seen.black == [False] * 2 * 5 + [True] * 2 * 4  # 3 batches an epoch, 2 and 1 a step; from the fourth step


def test_augmentation_ends_by_the_steps_that_a_time_limit_plans(make_trainer):
    seen, clock = Seen(), Clock()
    limit = TimeLimit(24.0, clock=clock)
    options = {"data_collator": seen, "callbacks": [clock, limit]}
    trainer = make_trainer(rows=scenes(8), augment=White(), options=options, num_train_epochs=100, lr_drop_at=None)
    trainer.train()
    assert 15 < limit.steps < 24
    assert seen.black.index(True) == 2 * round(0.9 * limit.steps)
    assert all(seen.black[seen.black.index(True) :])


def test_a_time_limit_too_short_to_tell_the_end_of_the_augmentation_is_an_error(make_trainer):
    clock = Clock()
    options = {"callbacks": [clock, TimeLimit(4.9, clock=clock)]}
    settings = {"num_train_epochs": 100, "lr_drop_at": None, "rows": scenes(8), "options": options}
    with pytest.raises(ValueError, match=r"time limit of 4.9 s is too short: after step 3 3 s are used"):
        make_trainer(augment=White(), augment_until=0.7, **settings).train()


RUN = {
    "rows": scenes(5),
    "augment": "strong",
    "num_train_epochs": 3,
    "repeated_augmentation": 2,
    "augment_until": 0.6,
    "group_by_aspect_ratio": True,
    "save_strategy": "steps",
    "save_total_limit": None,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    trainer = trainer_maker(tmp_path_factory.mktemp("undisturbed"))(model(dropout=0.1), **RUN, save_steps=1)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("step", "workers"), [(3, 2), (11, 0)])
def test_a_resumed_run_with_strong_augmentation_ends_as_an_undisturbed_one(
    undisturbed,
    make_trainer,
    step,
    workers,
):
    resumed = make_trainer(model(dropout=0.1, seed=5), **{**RUN, "save_strategy": "no"}, dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=Path(undisturbed.args.output_dir) / f"checkpoint-{step}")
    assert resumed.state.global_step == undisturbed.state.global_step == 15
    for (name, weight), (_, again) in zip(
        undisturbed.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(again, weight, rtol=0, atol=1e-6, msg=name)


def test_images_are_mixed_with_those_that_are_trained_on_alone(make_trainer):
    seen = set()

    def note(row):
        seen.add(row["image_id"])
        return row

    dataset = transformed(scenes(8), [note, Mosaic()]).select([2, 5])
    trainer = make_trainer()
    trainer.train_dataset = dataset
    for _ in range(4):
        list(trainer.get_train_dataloader())
    assert seen == {scenes(8)[2]["image_id"], scenes(8)[5]["image_id"]}


def test_bad_boxes_and_images_without_objects_go_through_mixing(make_trainer):
    rows = scenes(6)

    def spoilt(row, index):
        objects = row["objects"]
        if index == 0:
            objects = {name: [] for name in objects}
        if index in (1, 2):
            objects = {**objects, "bbox": [[60.0, 50.0, 30.0, 10.0], *objects["bbox"][1:]]}
        return {"objects": objects}

    rows = rows.map(spoilt, with_indices=True)
    with pytest.warns(UserWarning, match="dropped"):
        trainer = make_trainer(rows=rows, augment="strong", on_bad_box="drop", num_train_epochs=4)
    trainer.train()
    assert trainer.state.global_step == 12


def test_a_repeated_image_comes_at_once_and_augmented_otherwise():
    samples = ReproducibleSamples(transformed(scenes(5), "paper"), seed=3)
    order = EpochOrder(samples, repeats=3)
    assert len(order) == 15
    places = list(order)
    indices = [place % 5 for place in places]
    assert sorted(indices[::3]) == list(range(5))
    assert indices == [index for index in indices[::3] for _ in range(3)]
    samples.set_epoch(1)
    again = list(order)
    assert len({*places, *again}) == 30
    shapes = [samples[place]["pixel_values"].shape for place in (*places, *again) if place % 5 == indices[0]]
    assert len(set(shapes)) > 1
    assert [place % 5 for place in EpochOrder(samples, shuffle=False)] == list(range(5))
    by_shape = EpochOrder(samples, True, [(64, 64)] * 5, 6, transform_of(samples.dataset).final_hw, 3)
    assert sorted(place % 5 for place in by_shape) == sorted(3 * list(range(5)))
