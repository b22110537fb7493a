"""DetrTrainer on one process: losses, optimizer, evaluation, the best checkpoint, the average, early stopping."""

import math
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_detr import DetrForObjectDetection
from hf_detr.evaluation import CocoEvaluator
from hf_detr.training import DetrTrainer, evaluate_model

from .conftest import PROCESSOR, arguments, model, scenes, training_log, transformed


def _gradients(trainer, monkeypatch) -> list[torch.Tensor]:
    """Of the first optimizer step, before anything moves."""
    found = []

    def record(*args, **kwargs):
        found.extend(one.grad.clone() for one in trainer.model.parameters() if one.grad is not None)
        trainer.control.should_training_stop = True

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: record())
    trainer.train()
    return found


def test_accumulated_batches_are_one_batch(make_trainer, monkeypatch):
    """Law 6: unequal numbers of boxes in the passes, images without any among them."""
    rows = scenes(4).map(lambda row: {"objects": {name: [] for name in row["objects"]}} if row["image_id"] == 1 else {})
    common = {"rows": rows, "train_sampling_strategy": "sequential", "max_grad_norm": 1e9}
    one = make_trainer(**common, per_device_train_batch_size=4, folder="one")
    four = make_trainer(**common, per_device_train_batch_size=1, gradient_accumulation_steps=4, folder="four")
    of_one, of_four = _gradients(one, monkeypatch), _gradients(four, monkeypatch)

    together, apart = training_log(one)[0], training_log(four)[0]
    for name in (key for key in together if key.startswith("loss")):
        assert apart[name] == pytest.approx(together[name], rel=1e-5), name
    assert len(of_one) == len(of_four) > 50
    for left, right in zip(of_one, of_four, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * float(left.abs().max().clamp(min=1)))


def test_every_part_of_the_loss_is_logged_and_the_parts_make_the_loss(make_trainer):
    trainer = make_trainer(logging_steps=2)
    trainer.train()
    entries = training_log(trainer)
    assert len(entries) == 2
    config = trainer.model.config
    for entry in entries:
        total = 0.0
        for suffix in ("", "_0"):
            total += entry[f"loss_ce{suffix}"] + config.bbox_loss_coefficient * entry[f"loss_bbox{suffix}"]
            total += config.giou_loss_coefficient * entry[f"loss_giou{suffix}"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= entry["class_error"] <= 100
        assert entry["cardinality_error"] >= 0


def test_the_backbone_learns_slower_and_rates_drop_after_two_thirds(make_trainer):
    trainer = make_trainer(learning_rate=1e-4, num_train_epochs=3)
    trainer.create_optimizer_and_scheduler(num_training_steps=300)
    rates = []
    for _ in range(300):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[0] == rates[199] == pytest.approx([1e-4, 1e-5])
    assert rates[200] == rates[-1] == pytest.approx([1e-5, 1e-6])
    grouped = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert grouped == sum(one.requires_grad for one in trainer.model.parameters())
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {1e-4}


def test_evaluation_gives_the_ap_of_the_rows_crowds_included(make_trainer):
    def crowd(row):
        row["objects"]["iscrowd"] = [1] + [0] * (len(row["objects"]["bbox"]) - 1)
        return row

    rows = scenes(5, "test").map(crowd)
    trainer = make_trainer(test=rows)
    metrics = trainer.evaluate()
    expected: CocoEvaluator = evaluate_model(trainer.model, PROCESSOR, rows, batch_size=2)
    assert metrics["eval_num_crowds"] == 5
    assert metrics["eval_num_images"] == 5
    for name, value in expected.summary().items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-6), name
    assert trainer.evaluator.compute()["map"] == metrics["eval_map"]


def test_the_evaluation_loss_does_not_depend_on_the_batch_size(make_trainer):
    rows = scenes(5, "test")
    detector = model()
    losses = [
        make_trainer(detector, test=rows, per_device_eval_batch_size=size, folder=str(size)).evaluate()
        for size in (1, 2, 5)
    ]
    for name in ("eval_loss", "eval_loss_ce", "eval_loss_bbox", "eval_loss_giou", "eval_class_error"):
        assert losses[1][name] == pytest.approx(losses[0][name], rel=1e-5)
        assert losses[2][name] == pytest.approx(losses[0][name], rel=1e-5)
    # and it is the model's own, where all is one batch
    trainer = make_trainer(detector, test=rows, per_device_eval_batch_size=5, folder="own")
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        assert float(detector.eval()(**batch).loss) == pytest.approx(losses[0]["eval_loss"], rel=1e-5)


def test_predict_gives_every_image_in_order(make_trainer):
    rows = scenes(5, "test")
    trainer = make_trainer(test=rows)
    output = trainer.predict(trainer.eval_dataset)
    assert [one["image_id"] for one in output.predictions] == rows["image_id"][:]
    assert all(one["boxes"].shape == (9, 4) for one in output.predictions)
    assert output.metrics["test_map"] >= 0
    unlabelled = trainer.eval_dataset.remove_columns("objects")
    again = trainer.predict(unlabelled).predictions
    for one, other in zip(output.predictions, again, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)


def test_the_best_checkpoint_by_ap_is_loaded_at_the_end(make_trainer, monkeypatch):
    trainer = make_trainer(test=scenes(2, "test"), num_train_epochs=3, save_total_limit=1)
    aps, weights = iter([0.1, 0.5, 0.2]), []
    evaluate = type(trainer).evaluation_loop

    def scripted(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_map"] = next(aps)
        weights.append(self.model.class_labels_classifier.weight.detach().clone())
        return output

    monkeypatch.setattr(type(trainer), "evaluation_loop", scripted)
    trainer.train()
    assert trainer.state.best_metric == 0.5
    assert torch.equal(trainer.model.class_labels_classifier.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_early_stopping_counts_evaluations_without_a_better_ap(make_trainer, monkeypatch):
    trainer = make_trainer(test=scenes(1, "test"), rows=scenes(2), num_train_epochs=9, early_stopping_patience=2)
    aps = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    evaluate = type(trainer).evaluation_loop

    def scripted(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_map"] = next(aps)
        return output

    monkeypatch.setattr(type(trainer), "evaluation_loop", scripted)
    trainer.train()
    assert trainer.state.epoch == 4
    assert next(aps) == 0.9


def test_the_average_is_evaluated_saved_and_left_in_the_model(make_trainer, tmp_path):
    decay, path = 0.5, tmp_path / "run" / "checkpoint-3"
    trainer = make_trainer(rows=scenes(6), ema_decay=decay, save_strategy="steps", save_steps=3)
    name, seen = "class_labels_classifier.weight", []
    expected = trainer.model.get_parameter(name).detach().clone()

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.get_parameter(name).detach().clone())

    trainer.add_callback(Record())
    trainer.train()
    for step, weight in enumerate(seen, start=1):
        now = min(decay, (1 + step) / (10 + step))
        expected = now * expected + (1 - now) * weight
    torch.testing.assert_close(trainer.model.get_parameter(name).detach(), expected)
    assert (expected - seen[-1]).abs().max() > 1e-4
    saved = DetrForObjectDetection.from_pretrained(path)
    torch.testing.assert_close(saved.get_parameter(name).detach(), expected)
    torch.testing.assert_close(load_file(path / "training_weights.safetensors")[name], seen[-1])


def test_the_average_is_what_is_evaluated(make_trainer):
    rows = scenes(3, "test")
    trainer = make_trainer(rows=scenes(4), test=rows, ema_decay=0.9, load_best_model_at_end=False)
    trainer.train()
    during = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(during["eval_loss"], rel=1e-5)


def test_collapsed_queries_are_warned_of(make_trainer):
    detector = model()
    torch.nn.init.zeros_(detector.model.query_position_embeddings.weight)
    trainer = make_trainer(detector, test=scenes(2, "test"))
    with pytest.warns(UserWarning, match="queries have collapsed"):
        trainer.evaluate()
    healthy = make_trainer(test=scenes(2, "test"), folder="healthy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda text, *a, **k: pytest.fail(str(text)) if "collapsed" in str(text) else 0)
        healthy.evaluate()


def test_predictions_that_are_not_finite_stop_the_run_and_name_step_and_images(make_trainer):
    detector = model()
    trainer = make_trainer(detector)
    with torch.no_grad():
        detector.class_labels_classifier.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"Step 1, images \[\d, \d\]: The predictions are not finite"):
        trainer.train()


@pytest.mark.parametrize("augment", [None, "paper", lambda row: row])
def test_batches_of_like_shape_hold_every_image_once(make_trainer, augment):
    rows = scenes(7)
    loader = make_trainer(rows=rows, group_by_aspect_ratio=True, augment=augment).get_train_dataloader()
    for _ in range(2):
        ids = [int(label["image_id"]) for batch in loader for label in batch["labels"]]
        assert sorted(ids) == rows["image_id"][:]


def test_batches_of_like_shape_are_alike_after_the_augmentation(make_trainer):
    def padded(grouped: bool) -> float:
        trainer = make_trainer(
            rows=scenes(48), augment="paper", group_by_aspect_ratio=grouped, per_device_train_batch_size=4
        )
        on_canvas = visible = 0
        for batch in trainer.get_train_dataloader():
            pixels = batch["pixel_values"][:, 0]
            on_canvas += pixels.numel()
            visible += sum(int(label["size"].prod()) for label in batch["labels"])
        return on_canvas / visible - 1

    assert padded(True) < padded(False) / 2


class _Slow:
    """Rows that take their time."""

    def __init__(self, dataset, seconds: float):
        self.dataset, self.seconds = dataset, seconds

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return self.dataset[index]


def test_the_time_that_the_model_waited_for_data_is_known(tmp_path):
    shares = []
    for seconds in (0.0, 0.3):
        trainer = DetrTrainer(
            model(), arguments(tmp_path, eval_strategy="no"), train_dataset=_Slow(transformed(scenes(8)), seconds)
        )
        result = trainer.train()
        assert result.metrics["train_data_wait_share"] == trainer.data_wait_share
        shares.append(trainer.data_wait_share)
    assert 0 < shares[0] < shares[1] <= 1
    assert shares[1] > 0.5  # 8 x 0.3 s of sleep beside four quick steps
