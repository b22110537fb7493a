"""What cannot train says so at once, and how to mend it."""

import pytest
import torch
from datasets import Dataset, Image
from transformers import TrainingArguments

from hf_detr.training import DetrTrainer, DetrTrainingArguments

from .conftest import arguments, model, scenes, transformed


def test_a_dropped_image_column_is_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match="remove_unused_columns=True drops the column 'image'"):
        arguments(tmp_path, remove_unused_columns=True)


def test_rows_without_a_transform_are_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"train_dataset: .* no pixel_values; give it a transform"):
        DetrTrainer(model(), arguments(tmp_path, eval_strategy="no"), train_dataset=scenes())
    with pytest.raises(ValueError, match=r"eval_dataset: .* no pixel_values"):
        DetrTrainer(model(), arguments(tmp_path), train_dataset=transformed(scenes()), eval_dataset=scenes())


def test_data_parallel_is_an_error_that_names_the_way_out(tmp_path):
    args = arguments(tmp_path, eval_strategy="no")
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 GPUs in one process.*accelerate launch --num_processes 2"):
        DetrTrainer(model(), args, train_dataset=transformed(scenes()))


def test_other_arguments_and_functions_of_metrics_are_refused(tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match="DetrTrainingArguments, not TrainingArguments"):
        DetrTrainer(model(), plain)
    with pytest.raises(ValueError, match=r"compute_metrics: .* use transformers.Trainer"):
        DetrTrainer(model(), arguments(tmp_path), compute_metrics=lambda _: {})


def _with_bad_box(rows):
    def with_overhang(row):
        if row["image_id"] == 3:
            row["objects"]["bbox"][0] = [50.0, 50.0, 40.0, 10.0]  # of 64 pixels
        return row

    return rows.map(with_overhang)


def test_a_bad_box_stops_before_the_first_step_and_names_its_image(make_trainer):
    with pytest.raises(ValueError, match=r"train_dataset: image_id 3: object 0: .*partly outside the image"):
        make_trainer(rows=_with_bad_box(scenes()))


@pytest.mark.parametrize(("policy", "lost"), [("drop", 1), ("clip", 0)])
def test_bad_boxes_are_dropped_or_clipped_and_counted(make_trainer, policy, lost):
    rows = _with_bad_box(scenes())
    objects = len(rows[3]["objects"]["bbox"])
    with pytest.warns(UserWarning, match="1 (dropped|clipped)"):
        trainer = make_trainer(rows=rows, test=rows, on_bad_box=policy)
    label = trainer.train_dataset[3]["labels"]
    assert len(label["class_labels"]) == objects - lost
    if policy == "clip":
        torch.testing.assert_close(label["boxes"][0], torch.tensor([57.0, 55.0, 14.0, 10.0]) / 64)
    assert trainer.evaluate()["eval_num_targets"] == sum(len(row["objects"]["bbox"]) for row in rows) - lost


def test_more_classes_than_the_model_has_is_an_error(make_trainer):
    with pytest.raises(ValueError, match="the data has 5 classes and the model 3"):
        make_trainer(model(id2label={0: "zero", 1: "one", 2: "two"}))


def test_classes_of_other_names_are_warned_of(make_trainer):
    with pytest.warns(UserWarning, match="class 1 is 'one' in the data and 'cat' in the model"):
        make_trainer(model(id2label={0: "zero", 1: "cat", 2: "two", 3: "three", 4: "four"}))


def test_too_few_queries_are_warned_of(make_trainer):
    with pytest.warns(UserWarning, match="an image has 3 objects and the model 2 queries"):
        make_trainer(model(num_queries=2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ema_decay", 1.0),
        ("lr_drop_at", 0.0),
        ("augment_until", 0.0),
        ("repeated_augmentation", 0),
        ("backbone_learning_rate", -1.0),
        ("early_stopping_patience", 0),
        ("on_bad_box", "keep"),
        ("eval_score_threshold", 1.5),
        ("label_smoothing_factor", 0.1),
    ],
)
def test_impossible_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        arguments(tmp_path, **{name: value})


def test_defaults_are_the_papers(tmp_path):
    args = DetrTrainingArguments(str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.backbone_learning_rate, args.weight_decay) == (1e-4, 1e-5, 1e-4)
    assert (args.max_grad_norm, args.num_train_epochs, args.per_device_train_batch_size) == (0.1, 300, 2)
    assert (args.metric_for_best_model, args.greater_is_better, args.remove_unused_columns) == ("map", True, False)
    assert args.load_best_model_at_end
    assert not DetrTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="no").load_best_model_at_end


def test_several_processes_that_do_not_know_of_each_other_are_an_error(tmp_path, monkeypatch):
    args = arguments(tmp_path, eval_strategy="no")  # made before: Accelerate looks at the environment, and remembers
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but each would train alone"):
        DetrTrainer(model(), args, train_dataset=transformed(scenes(2)))


def test_bad_images_are_dropped_before_the_first_step_and_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = list(scenes().cast_column("image", Image(decode=False)))
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:-60]
    dataset = transformed(Dataset.from_list(rows, features=scenes().features))
    args = arguments(tmp_path, on_bad_image="drop", eval_strategy="no")
    with pytest.warns(UserWarning, match="train_dataset': 1 images dropped"):
        trainer = DetrTrainer(model(), args, train_dataset=dataset)
    assert len(trainer.train_dataset) == len(rows) - 1
    with pytest.raises(ValueError, match="on_bad_image='skip' is none of"):
        arguments(tmp_path, on_bad_image="skip")
