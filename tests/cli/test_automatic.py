"""`hf-detr train DATA` with nothing else: what it picks, says, keeps, and leaves to the user."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from hf_detr import DetrForObjectDetection, DetrImageProcessor, tiny_checkpoint
from hf_detr.cli.main import main
from hf_detr.data.synthetic.shapes import shape_scenes
from hf_detr.training import automatic
from hf_detr.training.automatic import RULES

QUICK = ("--model", "tiny", "--max-steps", "3", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory) -> Path:
    """Scenes with small shapes, 14 in one of them: more than the tiny checkpoint has queries for."""
    disable_progress_bars()
    options = {"image_size": 160, "max_objects": 3, "object_size": (10, 20)}
    scenes = shape_scenes(12, seed=1, **options)
    rows = [*scenes]
    corners = [(x, y) for x in range(0, 140, 20) for y in (0, 60)]
    rows[3]["objects"] = {
        "id": list(range(900, 914)), "bbox": [[x, y, 12.0, 12.0] for x, y in corners], "category": [0] * 14,
        "area": [144.0] * 14, "iscrowd": [0] * 14,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("data") / "shapes"
    train = Dataset.from_list(rows, features=scenes.features)
    DatasetDict(train=train, validation=shape_scenes(4, seed=2, **options)).save_to_disk(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words) -> str:
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def explained(capsys, *words) -> dict[str, tuple[str, str]]:
    """Setting -> its value and "picked" or "given", of the table that --explain prints."""
    table = run(capsys, "train", *words, "--explain").split("\n\n")[-1].splitlines()[1:]
    rows = [re.split(r"  +", line) for line in table]
    return {row[0].removeprefix("--").replace("-", "_"): (row[1], row[2]) for row in rows}


def test_the_start_from_imagenet_trains_and_the_card_says_what_it_was(shapes_dir, here, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(here / "cache"))
    run(capsys, "train", shapes_dir, "--model", "imagenet", *QUICK[2:], "--output", "run")
    card = (here / "run" / "README.md").read_text()
    assert "EfficientNet-Lite0 of ImageNet" in card
    assert str(here) not in card


OPEN = {"epochs": "as many as fit", "dropout": "the start's"}  # None, in words


def test_nothing_but_data_and_start_picks_says_keeps_and_trains_with_what_it_says(shapes_dir, here, capsys):
    said = run(capsys, "train", shapes_dir, *QUICK)
    assert "run folder: runs/shapes (--output names another)" in said
    first = next(number for number, line in enumerate(said.splitlines()) if line.startswith("settings for 12 images"))
    lines = said.splitlines()[first : first + 4]
    assert lines[3] == ""
    assert "30 queries (the start's 12 are too few for at most 14 objects), images of 160 px" in lines[1]
    assert "4 images a step" in lines[2]
    assert "rate 0.0005 (a small transformer, 4 images a step)" in lines[2]

    folder = here / "runs" / "shapes"
    kept = json.loads((folder / "run.json").read_text())
    assert {name: kept[name] for name in RULES} == {
        "num_queries": 30, "image_size": 160, "dropout": None, "augment": "flip", "recipe": "fast",
        "batch_size": 4, "epochs": None, "eval_every": 1, "learning_rate": 5e-4, "backbone_learning_rate": 5e-4,
        "lr_drop_at": 2 / 3, "clip": 1.0,
    }  # fmt: skip
    assert DetrForObjectDetection.from_pretrained(folder).config.num_queries == 30
    assert DetrImageProcessor.from_pretrained(folder).size == {"shortest_edge": 160, "longest_edge": 266}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert {entry["learning_rate"] for entry in metrics["history"] if "learning_rate" in entry} <= {5e-4, 5e-5}

    # the same as the table, which writes nothing
    before = sorted(here.rglob("*"))
    table = explained(capsys, shapes_dir, *QUICK)
    assert {name: value for name, (value, _) in table.items()} == {
        name: OPEN[name] if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in ((name, kept[name]) for name in RULES)
    }
    assert sorted(here.rglob("*")) == before
    assert "runs/shapes-2" in run(capsys, "train", shapes_dir, *QUICK, "--no-check")
    assert json.loads((here / "runs" / "shapes-2" / "run.json").read_text()) == {
        **kept, "output": "runs/shapes-2", "no_check": True
    }  # fmt: skip

    # and another command repeats it
    again = explained(capsys, "--config", folder / "run.json")
    assert {name: value for name, (value, _) in again.items()} == {name: value for name, (value, _) in table.items()}
    assert again.pop("dropout") == ("the start's", "picked")
    assert {how for _, how in again.values()} == {"given"}


@pytest.mark.parametrize(
    ("start", "given", "expected"),
    [
        ("--backbone test_resnet --d-model 32 --ffn-dim 48 --encoder-layers 1 --decoder-layers 1", "", 0.0),
        ("--backbone test_resnet --d-model 32 --ffn-dim 48 --encoder-layers 1 --decoder-layers 1", "0.3", 0.3),
        ("--model tiny", "", 0.0),  # its own
        ("--model tiny", "0.3", 0.3),
    ],
)
def test_dropout_is_that_of_the_table_in_all_places(start, given, expected, shapes_dir, here, capsys):
    options = [*start.split(), *(["--dropout", given] if given else [])]
    run(capsys, "train", shapes_dir, *options, "--max-steps", "1", *QUICK[4:], "--no-check", "--output", "run")
    config = DetrForObjectDetection.from_pretrained("run").config
    assert {config.dropout, config.attention_dropout, config.activation_dropout} == {expected}


def test_a_resumed_run_keeps_its_first_picks(shapes_dir, here, capsys, monkeypatch):
    words = [shapes_dir, "--model", "tiny", "--epochs", "2", "--workers", "0", "--device", "cpu", "--no-check"]
    run(capsys, "train", *words, "--output", "run")
    kept = json.loads(Path("run/run.json").read_text())
    monkeypatch.setattr(automatic, "SMALL_RATE", 7e-4)
    monkeypatch.setattr(automatic, "KEPT_MARGIN", 9.0)
    assert explained(capsys, *words)["learning_rate"] == ("0.0007", "picked")
    said = run(capsys, "train", *words, "--output", "run", "--resume", "--epochs", "3")
    assert "settings for" not in said
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["steps"] == 9
    assert metrics["settings"] | {"model": None} == {
        **kept,
        "epochs": 3,
        "no_check": True,
        "data": "shapes",
        "model": None,
    }


GIVEN = {
    "num_queries": 15,
    "image_size": 128,
    "dropout": 0.25,
    "recipe": "paper",
    "batch_size": 2,
    "epochs": 7,
    "augment": "none",
    "eval_every": 3,
    "learning_rate": 0.002,
    "backbone_learning_rate": 0.003,
    "lr_drop_at": 0.5,
    "clip": 0.7,
}


def test_every_option_that_is_given_stays_one_by_one(shapes_dir, here, capsys):
    assert list(GIVEN) == list(RULES)
    for name, value in GIVEN.items():
        found = explained(capsys, shapes_dir, "--model", "tiny", f"--{name.replace('_', '-')}", value)
        assert found.pop(name) == (str(value), "given")
        assert {how for _, how in found.values()} == {"picked"}


def test_a_run_with_a_batch_size_to_be_found_picks_the_rest_for_what_is_found(shapes_dir, here, capsys, monkeypatch):
    monkeypatch.setattr("hf_detr.cli._training.ON_CPU", 1)
    said = run(capsys, "train", shapes_dir, *QUICK, "--batch-size", "auto", "--no-check")
    assert "rate 0.00025 (a small transformer, 1 image a step)" in said
    assert json.loads(Path("runs/shapes/run.json").read_text())["batch_size"] == 1


def test_check_judges_by_the_queries_that_train_picks(shapes_dir, here, capsys):
    tiny = tiny_checkpoint()
    checked = run(capsys, "check", shapes_dir, "--model", "tiny", "--headers-only")
    assert f"num_queries=30 (picked, 12 of {tiny} are too few) is enough" in checked
    assert "num_queries=100 (the default) is enough" in run(capsys, "check", shapes_dir, "--headers-only")
    assert explained(capsys, shapes_dir, "--model", "tiny")["num_queries"] == ("30", "picked")
    assert main(["check", str(shapes_dir), "--num-queries", "12", "--headers-only"]) == 1
    assert main(["train", str(shapes_dir), "--model", "tiny", "--num-queries", "12"]) == 2
    assert "14 objects, more than num_queries=12: 2 can never be found" in capsys.readouterr().err
    assert not list(here.glob("runs/*"))  # a refused run leaves no folder


def test_the_last_step_is_evaluated_also_between_two_evaluations(digits_dir, here, capsys):
    words = [
        "--model",
        "tiny",
        "--epochs",
        "3",
        "--eval-every",
        "2",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--no-check",
    ]
    run(capsys, "train", digits_dir, *words, "--device", "cpu")
    metrics = json.loads(Path("runs/digits/metrics.json").read_text())
    assert [entry["step"] for entry in metrics["history"] if "eval_map" in entry] == [4, 6]


def test_without_the_hub_the_error_names_what_works_without(shapes_dir, here, capsys):
    assert main(["train", str(shapes_dir)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    for part in ("facebook/detr-resnet-50", "without the Hub", "--model imagenet", "--backbone resnet50"):
        assert part in line


def test_a_folder_called_tiny_is_taken_for_what_it_is(shapes_dir, here, capsys):
    Path("tiny").mkdir()
    assert main(["train", str(shapes_dir), "--model", "tiny"]) == 2
    assert "tiny: no config.json in it" in capsys.readouterr().err


def test_several_processes_need_a_named_run_folder(shapes_dir, here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(shapes_dir), "--model", "tiny"]) == 2
    assert "--output RUN is missing: several processes cannot agree on a new folder" in capsys.readouterr().err
