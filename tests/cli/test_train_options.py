"""Options of `hf-detr train`: from a file, where the log goes, batch size, and what data it takes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, integrations
from transformers.integrations import integration_utils

from hf_detr import DetrForObjectDetection
from hf_detr.cli import _batch_size
from hf_detr.cli._arguments import seconds_of
from hf_detr.cli._callbacks import UNPLANNED, OneBar
from hf_detr.cli.main import main
from hf_detr.data.synthetic.digits import digit_scenes

from ..small_models import small_model
from .test_train import TINY

OPTIONS = {
    "backbone": "test_resnet",
    "d_model": 32,
    "heads": 4,
    "ffn-dim": 48,  # as on the command line
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
    "image_size": 64,
    "epochs": 7,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "workers": 0,
    "device": "cpu",
    "no_check": True,
    "denoising_queries": 5,
    "query_groups": 2,
    "save_total_limit": 1,
    "report_to": "tensorboard",
    "ema": 0.5,
    "image_dir": None,
}
REPORTED = []


class Reporter(TrainerCallback):
    """In place of the integration with tensorboard, which needs its package."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        REPORTED.append((args.run_name, logs))


@pytest.fixture
def reporter(monkeypatch):
    monkeypatch.setattr(integrations, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Reporter)
    REPORTED.clear()
    return REPORTED


def train(*words) -> int:
    return main(["train", *map(str, words)])


def test_options_come_from_a_file_the_command_line_overrides_them_and_the_run_keeps_them_for_another(
    digits_dir, tmp_path, reporter
):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**OPTIONS, "data": str(digits_dir)}))
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("--config", tmp_path / "run.yaml", "--output", first, "--epochs", 3) == 0
    kept = json.loads((first / "run.json").read_text())
    given = {name.replace("-", "_"): value for name, value in OPTIONS.items()}
    assert {name: kept[name] for name in given} == {**given, "epochs": 3}
    assert kept["backbone_learning_rate"] == 1e-3  # what was left open is written as it was decided

    # what the file asked for was done
    assert json.loads((first / "metrics.json").read_text())["steps"] == 12
    assert 1 <= len(list(first.glob("checkpoint-*"))) <= 2
    assert (first / "checkpoint-12").is_dir()  # the last one, for --resume
    assert {name for name, _ in reporter} == {"first"}
    assert any({"loss_denoising", "loss_groups"} <= logs.keys() for _, logs in reporter)
    assert any("eval_map" in logs for _, logs in reporter)

    assert train("--config", first / "run.json", "--output", second, "--report-to", "none") == 0
    expected, found = (load_file(one / "model.safetensors") for one in (first, second))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "learningrate: 1", "a.yaml: unknown option 'learningrate'; did you mean learning_rate?"),
        ("a.yaml", "colour: red", "a.yaml: unknown option 'colour'; hf-detr train --help has them."),
        ("a.yaml", "epochs: many", "a.yaml: argument --epochs: many is not a whole number of at least 1 "),
        ("a.yaml", "epochs: [1, 2]", "a.yaml: epochs: expected one value, got ['1', '2']."),
        ("a.yaml", "no_check: maybe", "a.yaml: no_check: expected true or false, got 'maybe'."),
        ("a.yaml", "recipe: slow", "a.yaml: argument --recipe: invalid choice: 'slow'"),
        ("a.yaml", "epochs: 1\nepochs: 2", "a.yaml: not valid YAML (line 2: 'epochs' is given twice)"),
        ("a.json", '{"epochs": 1, "epochs": 2}', "a.json: 'epochs' is given twice"),
        ("a.yaml", "eval-every: 1\neval_every: 2", "a.yaml: eval_every is given twice"),
        ("a.yaml", "- 1", "a.yaml: expected options, such as 'epochs: 20', got list."),
        ("a.yaml", "epochs: 2: 3", "a.yaml: not valid YAML"),
        ("a.json", '{"epochs": 2', "a.json: not valid JSON"),
        ("a.json", '{"time_limit": 20}', "a.json: argument --time-limit: 20 is no time such as 90s, 20m or 1h30m."),
        ("a.json", '{"epochs": 2}', "--output RUN is missing; name it here or in a --config file."),
        ("a.json", '{"output": "run"}', "DATA is missing"),
    ],
)
def test_a_mistake_in_a_file_of_options_is_one_line_with_the_file(tmp_path, capsys, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    data = [] if "DATA" in said else ["data"]
    assert train(*data, "--config", name) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_names_of_classes_in_a_file_do_not_take_the_data_set_for_one(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("class_names: [cat, yes]\ndata: no/such/data")
    assert train("--config", tmp_path / "a.yaml", "--output", tmp_path / "run") == 2
    assert "no/such/data: no such file or folder" in capsys.readouterr().err
    assert train("no/other/data", "--config", tmp_path / "a.yaml", "--output", tmp_path / "run") == 2
    assert "no/other/data: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_log_that_goes_where_no_package_leads_is_refused_before_the_data_is_read(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(integrations, f"is_{name}_available", lambda: False)
    assert train("digits", "--backbone", "test_resnet", "--output", tmp_path / "run", "--report-to", name) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--report-to {name}: the package is not installed; pip install {name}" in line
    assert not (tmp_path / "run").exists()


def test_times_are_read_as_they_are_spoken():
    spoken = ("90s", "20m", "1h30m", "1.5h", "1h1m1s", "20", "0s", "m", "", "1h30", "5m1h", "-5m")
    assert [seconds_of(one) for one in spoken] == [90, 1200, 5400, 5400, 3661, 0, 0, 0, 0, 0, 0, 0]


def test_rates_that_fall_before_the_length_of_a_limited_run_is_known_are_refused(tmp_path, capsys):
    words = ["--output", tmp_path / "run", "--time-limit", "5m", "--lr-drop-at", "0.1"]
    assert train("data", *words) == 2
    assert "--lr-drop-at 0.1 with --time-limit" in capsys.readouterr().err
    words = ["--output", tmp_path / "run", "--time-limit", "5m", "--augment", "strong", "--augment-until", "0.1"]
    assert train("data", *words) == 2
    assert "--augment-until 0.1 with --time-limit" in capsys.readouterr().err


def test_strong_and_repeated_augmentation_train_to_the_end(digits_dir, tmp_path):
    words = [*TINY, "--epochs", "2", "--augment", "strong", "--repeated-augmentation", "2", "--eval-every", "2"]
    assert train(digits_dir, "--output", tmp_path / "run", *words, "--workers", "0") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 2 * 8
    assert "strong" in (tmp_path / "run" / "README.md").read_text()


def test_the_bar_of_a_limited_run_gets_its_length_when_the_steps_are_decided(capsys):
    bar, state = OneBar(), TrainerState(max_steps=4 * UNPLANNED, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    for state.global_step in (1, 2):
        bar.on_step_end(None, state, None)
    state.max_steps, state.global_step = 7, 3
    bar.on_step_end(None, state, None)
    bar.on_train_end(None, state, None)
    lines = capsys.readouterr().err.split("\r")
    assert "0step" in lines[1]
    assert " 3/7 " in lines[-1]


def test_the_automatic_batch_is_the_largest_whose_step_fits(monkeypatch):
    tried = []

    def of_memory_for_five(model, batch_size, *others):
        tried.append(batch_size)
        if batch_size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(_batch_size, "try_step", of_memory_for_five)
    found = _batch_size.find_batch_size(None, (800, 800), 3, torch.device("cpu"), largest=7)
    assert found == tried[-1] == 5
    assert tried == sorted(tried, reverse=True)


def test_a_tried_step_is_a_whole_one_and_leaves_the_model_as_it_is():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert _batch_size.find_batch_size(model, (64, 64), 3, torch.device("cpu"), largest=2) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="not even one image of 99 x 64 pixels fits into the memory of cpu"):
        _batch_size.find_batch_size(_NoMemory(), (64, 99), 3, torch.device("cpu"), largest=2)


class _NoMemory(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_one_class_and_three_hundred_objects_in_an_image_train_with_as_many_queries(tmp_path, capsys):
    scenes = digit_scenes(4, image_size=64, digits=[3], max_objects=2)
    corners = [[float(x), float(y), 3.0, 3.0] for x in range(0, 60, 3) for y in range(0, 45, 3)]
    crowd = {
        "id": list(range(100, 400)), "bbox": corners, "category": [0] * 300, "area": [9.0] * 300, "iscrowd": [0] * 300
    }  # fmt: skip
    rows = [*scenes]
    rows[1] = {**rows[1], "objects": crowd}
    others = digit_scenes(2, image_size=64, digits=[3], max_objects=2, split="test")
    data = DatasetDict(train=Dataset.from_list(rows, features=scenes.features), test=others)
    data.save_to_disk(tmp_path / "data")
    words = [tmp_path / "data", "--output", tmp_path / "run", *TINY, "--epochs", "1", "--batch-size", "auto"]
    assert train(*words, "--workers", "0") == 2
    assert "300 objects, more than num_queries=6: 294 can never be found" in capsys.readouterr().err
    assert train(*words, "--workers", "0", "--num-queries", "300") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["batch_size"] == 4
    assert list(DetrForObjectDetection.from_pretrained(tmp_path / "run").config.id2label.values()) == ["three"]


def test_a_data_set_of_one_image_is_refused_with_words(tmp_path, capsys):
    DatasetDict(train=digit_scenes(1, image_size=64)).save_to_disk(tmp_path / "data")
    assert train(tmp_path / "data", "--output", tmp_path / "run", *TINY) == 2
    assert "one image is not enough to train and to evaluate; add some." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
