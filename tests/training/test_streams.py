"""Training on streams: every row once a pass, and after a resume the next row, not the first."""

import json
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, Image, IterableDataset, interleave_datasets
from torch.utils.data import DataLoader

from hf_detr.data.loading import load_detection_dataset
from hf_detr.training import DetrTrainer
from hf_detr.training.streams import StreamBatches
from tests.processes import in_two_processes

from .conftest import arguments, model, scenes, training_log, transformed

DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


# ---- the batches alone


def numbers(count=23, shards=5) -> IterableDataset:
    return Dataset.from_dict({"number": list(range(count))}).to_iterable_dataset(num_shards=shards)


def with_noise(row: dict) -> dict:
    return {"number": row["number"], "noise": torch.rand(()).item()}


def with_noises(batch: dict) -> dict:
    return {"number": batch["number"], "noise": torch.rand(len(batch["number"])).tolist()}


class Generated(torch.utils.data.IterableDataset):
    """A stream that `datasets` knows nothing of."""

    def __iter__(self):
        return iter(map(with_noise, ({"number": number} for number in range(5))))


STREAMS = {
    "shards": lambda: numbers().map(with_noise),
    "one shard": lambda: numbers(7, 1).map(with_noise),
    "shuffled": lambda: numbers().shuffle(seed=3, buffer_size=4).map(with_noise),
    "in batches": lambda: numbers().map(with_noises, batched=True, batch_size=3),
    "interleaved": lambda: interleave_datasets([numbers(9, 3), numbers(5, 3)]).map(with_noise),
    "filtered": lambda: numbers().filter(lambda row: row["number"] % 3).map(with_noise),
    "generated": Generated,
}


def batches_of(stream, **options) -> StreamBatches:
    make_loader = partial(DataLoader, generator=torch.Generator())
    return StreamBatches(stream, make_loader, list, **{"batch_size": 2, "seed": 1, **options})


def one_pass(batches: StreamBatches) -> list[list[dict]]:
    passes, read = batches.passes, []
    while batches.passes == passes:
        read.append(next(batches))
    return read


def passed_through_json(state: dict) -> dict:
    return json.loads(json.dumps(state, default=lambda number: number.item()))


# the last divides itself among workers, if at all
@pytest.mark.parametrize(
    ("name", "workers"),
    [(name, workers) for name in STREAMS for workers in (0, 2) if (name, workers) != ("generated", 2)]
    + [("shards", 3)],
)
def test_batches_after_a_resume_are_those_that_would_have_come(name, workers):
    undisturbed = batches_of(STREAMS[name](), num_workers=workers)
    expected, states = [], []
    for step in range(9):
        expected.append(next(undisturbed))
        states.append(passed_through_json(undisturbed.state_dict(step)))
    for stopped in (3,) if workers else (0, 3, 6):
        resumed = batches_of(STREAMS[name](), num_workers=workers)
        resumed.load_state_dict(states[stopped])
        assert next(resumed) == expected[stopped + 1]
        again = batches_of(STREAMS[name](), num_workers=workers)  # killed twice
        again.load_state_dict(passed_through_json(resumed.state_dict(stopped + 1)))
        assert [next(again) for _ in range(stopped + 2, 9)] == expected[stopped + 2 :]


def test_with_a_state_that_is_not_exact_the_pass_is_read_again(monkeypatch):
    monkeypatch.setattr(datasets, "__version__", "5.1.0")
    undisturbed = batches_of(STREAMS["shards"]())
    expected = [next(undisturbed) for _ in range(3)]
    state = passed_through_json(undisturbed.state_dict(3))
    assert state["workers"]["0"] == {"rows": 6, "state": None}
    resumed = batches_of(STREAMS["shards"]())
    resumed.load_state_dict(state)
    assert next(resumed) == next(undisturbed) != expected[2]


@pytest.mark.parametrize("shards", [1, 4, 5])
def test_processes_and_workers_read_disjoint_shares_that_are_the_whole(shards):
    for num_processes, workers in ((1, 0), (1, 2), (2, 0), (2, 2), (3, 0)):
        seen = []
        for process in range(num_processes):
            options = {"num_workers": workers, "process_index": process, "num_processes": num_processes}
            batches = batches_of(numbers(23, shards).map(with_noise), **options)
            for _ in range(2):
                seen += [row["number"] for batch in one_pass(batches) for row in batch]
        assert sorted(seen) == sorted(2 * list(range(23))), (num_processes, workers)


def test_random_numbers_are_new_in_each_pass_and_for_each_row_and_leave_the_trainings_alone():
    batches = batches_of(numbers().map(with_noise))
    before = torch.get_rng_state()
    noises = [row["noise"] for _ in range(2) for batch in one_pass(batches) for row in batch]
    assert len(set(noises)) == len(noises) == 46
    assert torch.equal(torch.get_rng_state(), before)


def test_no_more_is_read_than_two_batches_ahead():
    read = []

    def rows():
        for number in range(100):
            read.append(number)
            yield {"number": number}

    batches = batches_of(IterableDataset.from_generator(rows))
    for step in range(10):
        next(batches)
        assert len(read) <= 2 * (step + 3)


def test_what_cannot_be_divided_or_resumed_is_said():
    with pytest.raises(ValueError, match=r"Generated cannot be divided among 2 processes; make it a datasets\."):
        batches_of(Generated(), num_processes=2)
    with pytest.raises(ValueError, match="pass 1 of the stream gave this process no batch"):
        next(batches_of(numbers().filter(lambda row: False)))
    batches = batches_of(numbers(), num_workers=2)
    next(batches)
    with pytest.raises(ValueError, match="was read by 2 workers and is to be read by 3"):
        batches_of(numbers(), num_workers=3).load_state_dict(batches.state_dict(1))


# ---- the trainer


def tar_shards(folder: Path) -> IterableDataset:
    """Nine images in three shards of WebDataset, through the loader."""
    rows = () if folder.exists() else scenes(9).cast_column("image", Image(decode=False))
    folder.mkdir(exist_ok=True)
    for row in rows:
        with tarfile.open(folder / f"train-{row['image_id'] % 3}.tar", "a") as tar:
            described = {"image_id": row["image_id"], "objects": row["objects"]}
            for suffix, content in (("png", row["image"]["bytes"]), ("json", json.dumps(described).encode())):
                info = tarfile.TarInfo(f"{row['image_id']:03}.{suffix}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    names = scenes(1).features["objects"]["category"].feature.names
    return load_detection_dataset(folder, streaming=True, class_names=names)["train"]


TRAINED = {
    "rows": (lambda folder: scenes(9).to_iterable_dataset(num_shards=3), 0, 1),
    "rows, accumulated": (lambda folder: scenes(9).to_iterable_dataset(num_shards=3), 2, 2),
    "shuffled": (lambda folder: scenes(9).to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4), 2, 1),
    "tar shards": (tar_shards, 2, 1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "shuffled" else ()) for name in TRAINED]
)
def test_a_resumed_run_on_a_stream_has_the_weights_of_an_undisturbed_one(make_trainer, tmp_path, name):
    make_stream, workers, accumulate = TRAINED[name]
    settings = {
        "augment": "paper",
        "max_steps": 7,
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": accumulate,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
    }

    def trained(folder, resume=None):
        torch.manual_seed(17)
        rows = make_stream(tmp_path / "shards")
        trainer = make_trainer(model(**DROPOUT), rows, folder=folder, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    undisturbed = trained("undisturbed")
    killed = trained("killed", tmp_path / "undisturbed" / "checkpoint-3")  # in the middle of a pass
    again = trained("again", tmp_path / "killed" / "checkpoint-4")
    for resumed in (killed, again):
        assert resumed.state.global_step == 7
        before, after = training_log(undisturbed), training_log(resumed)
        assert [entry["epoch"] for entry in after] == [entry["epoch"] for entry in before]
        assert [entry["loss"] for entry in after] == [entry["loss"] for entry in before]
        for name, weight in undisturbed.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_an_epoch_of_a_stream_is_a_pass(make_trainer):
    trainer = make_trainer(
        rows=scenes(6).to_iterable_dataset(num_shards=2), test=scenes(2, "test"), max_steps=7, save_strategy="epoch"
    )
    trainer.train()
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_map" in entry]
    assert evaluated == [3, 6, 7]
    assert [entry["epoch"] for entry in training_log(trainer)] == pytest.approx(
        [1 / 7, 2 / 7, 3 / 7, 8 / 7, 9 / 7, 10 / 7, 15 / 7]
    )


def test_a_finished_run_on_a_stream_is_not_trained_further(make_trainer, tmp_path):
    rows = scenes(4).to_iterable_dataset()
    make_trainer(rows=rows, max_steps=3, save_strategy="steps", save_steps=3).train()
    resumed = make_trainer(model(seed=5), rows, max_steps=3, save_strategy="no")
    resumed.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-3")
    assert resumed.state.global_step == 3


def test_a_stream_needs_a_position_and_no_shapes(make_trainer, tmp_path):
    make_trainer(rows=scenes(4), max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(rows=scenes(4).to_iterable_dataset(), max_steps=2)
    with pytest.raises(ValueError, match="checkpoint-1 holds no position in a stream"):
        trainer.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ValueError, match="a stream tells them one by one"):
        make_trainer(rows=scenes(4).to_iterable_dataset(), max_steps=1, group_by_aspect_ratio=True).train()
    with pytest.warns(UserWarning, match=r"give them to load_detection_dataset\(\.\.\., streaming=True\)"):
        make_trainer(rows=scenes(4).to_iterable_dataset(), max_steps=1, on_bad_box="drop")
    with pytest.raises(ValueError, match=r"train_dataset: its rows have .* but no pixel_values"):
        DetrTrainer(model(), arguments(tmp_path, max_steps=1), train_dataset=scenes(4).to_iterable_dataset())


class Recording(DetrTrainer):
    """Keeps the ids of the images that it was trained on."""

    def compute_loss(self, model, inputs, **options):
        self.seen = [*getattr(self, "seen", ()), *(int(label["image_id"]) for label in inputs["labels"])]
        return super().compute_loss(model, inputs, **options)


def _process(rank: int, folder: Path) -> None:
    def trained(name, resume):
        settings = {"max_steps": 6, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2}
        settings |= {"per_device_train_batch_size": 1, "save_total_limit": None, "ddp_backend": "gloo"}
        trainer = Recording(
            model(**DROPOUT),
            arguments(folder / name, **settings),
            train_dataset=transformed(scenes(5).to_iterable_dataset(), "paper"),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    undisturbed = trained("undisturbed", None)
    resumed = trained("resumed", folder / "undisturbed" / "checkpoint-2")
    epochs = [[entry["epoch"] for entry in training_log(one)] for one in (undisturbed, resumed)]
    numbers = {"seen": undisturbed.seen, "again": resumed.seen, "epochs": epochs}
    numbers["same"] = all(
        torch.equal(weight, resumed.model.state_dict()[name]) for name, weight in undisturbed.model.state_dict().items()
    )
    (folder / f"{rank}.json").write_text(json.dumps(numbers))


@pytest.mark.slow
def test_two_processes_train_on_every_row_once_a_pass_and_resume(tmp_path):
    in_two_processes(_process, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["seen"][:3] == [0, 2, 4]
    assert second["seen"] == [1, 3, 1, 3, 1, 3]  # who is through first begins its next pass
    for one in (first, second):
        assert one["again"] == one["seen"][2:]
        assert one["same"]
    expected = [1 / 6, 2 / 6, 3 / 6, 7 / 6, 8 / 6, 9 / 6]
    assert first["epochs"] == [pytest.approx(expected)] * 2


# ---- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_ends_is_evaluated_like_a_data_set(make_trainer, workers):
    def crowded(row):
        row["objects"]["iscrowd"] = [int(number == 0) for number in range(len(row["objects"]["iscrowd"]))]
        return row

    rows = scenes(5, "test").map(crowded)
    trainer = make_trainer(test=rows, dataloader_num_workers=workers)
    expected = trainer.evaluate()
    got = trainer.evaluate(transformed(rows.to_iterable_dataset(num_shards=3)))
    assert expected["eval_num_crowds"] > 0
    for name, value in expected.items():
        if "runtime" not in name and "per_second" not in name and "preparation" not in name:
            assert got[name] == pytest.approx(value, rel=1e-5), name
    found = trainer.predict(transformed(rows.to_iterable_dataset())).predictions
    assert [one["image_id"] for one in found] == list(range(5))


def test_images_of_a_stream_without_ids_of_their_own_are_said(make_trainer):
    rows = scenes(4, "test").map(lambda row: {"image_id": 1, "objects": {name: [] for name in row["objects"]}})
    with pytest.raises(ValueError, match="3 images of the stream have the image_id of another"):
        make_trainer().evaluate(transformed(rows.to_iterable_dataset()))
