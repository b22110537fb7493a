"""A training under a time limit, by a clock that the test moves: a second a step, two an evaluation."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from hf_detr.training import TimeLimit
from tests.processes import in_two_processes

from .conftest import model, scenes, trainer_maker, training_log

STEP_S, EVALUATION_S, LIMIT_S = 1.0, 2.0, 40.0
# An epoch is 4 steps, so 6 s with its evaluation. After the first one 34 s are left, and the last evaluation takes 2 of
# them: nine tenths of 32 are 28.8 s, which hold 4 epochs (24 s) and 3 steps, but not a fourth and its evaluation.
PLANNED = 4 + 4 * 4 + 3
RUN = {
    "rows": scenes(8),
    "test": scenes(2, "test"),
    "augment": "paper",
    "num_train_epochs": 1000,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
    "load_best_model_at_end": False,
    "ema_decay": 0.9,
    "recipe": "fast",
}


class Clock(TrainerCallback):
    """Moves at the end of steps and evaluations; comes before the limit."""

    def __init__(self, step_s=STEP_S, evaluation_s=EVALUATION_S, slow_after=None, slow_until=0):
        self.now, self.step_s, self.evaluation_s, self.slow_after = 1000.0, step_s, evaluation_s, slow_after
        self.slow_until = slow_until

    def on_step_end(self, args, state, control, **kwargs):
        slow = self.slow_after is not None and state.global_step > self.slow_after
        slow |= state.global_step <= self.slow_until
        self.now += self.step_s * (3 if slow else 1)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.now += self.evaluation_s
        metrics["eval_runtime"] = self.evaluation_s

    def __call__(self) -> float:
        return self.now


def limited(make, clock=None, seconds=LIMIT_S, steps=None, stop_at=None, on_decision=None, **changes):
    """A trainer with a limit, its limit, and its clock."""
    clock = clock or Clock()
    limit = TimeLimit(seconds, 2, steps=steps, stop_at=stop_at, on_decision=on_decision, clock=clock)
    changes = {**RUN, **changes}
    trainer = make(model(dropout=0.1, seed=7), options={"callbacks": [clock, limit]}, **changes)
    return trainer, limit, clock


def assert_same_weights(trainer, expected):
    for (name, weight), (_, again) in zip(
        expected.model.state_dict().items(), trainer.model.state_dict().items(), strict=True
    ):
        if not name.startswith("training_only."):  # whose average no file has
            torch.testing.assert_close(again, weight, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A limited training that was left alone, with a checkpoint of each step, and what was said of its plan."""
    plans = []
    trainer, limit, clock = limited(
        trainer_maker(tmp_path_factory.mktemp("undisturbed")), on_decision=lambda limit: plans.append(limit.steps)
    )
    trainer.train()
    return trainer, limit, clock, plans


def test_as_many_steps_are_planned_as_fit_beside_the_evaluations_and_the_rates_fall_with_them(undisturbed):
    trainer, limit, clock, plans = undisturbed
    assert trainer.state.global_step == limit.steps == PLANNED
    assert plans == [PLANNED]
    assert 0.8 * LIMIT_S < clock.now - 1000 <= LIMIT_S
    assert trainer.state.log_history[-2]["step"] == PLANNED  # the last weights were evaluated
    assert "eval_map" in trainer.state.log_history[-2]
    rates = [entry["learning_rate"] for entry in training_log(trainer)]
    assert rates == pytest.approx([1e-3] * 15 + [1e-4] * 8)  # 15 is two thirds of 23


def test_it_ends_with_the_weights_of_a_run_that_knew_its_steps_from_the_start(undisturbed, make_trainer):
    trainer = make_trainer(model(dropout=0.1, seed=7), **{**RUN, "save_strategy": "no"}, max_steps=PLANNED)
    trainer.train()
    assert_same_weights(trainer, undisturbed[0])


# before the plan was made, with the step that made it, and later; the machine then is another
@pytest.mark.parametrize(("step", "step_s"), [(2, 1.0), (4, 0.3), (10, 0.3), (21, 1.2)])
def test_a_resumed_run_keeps_the_plan_and_ends_with_the_weights_of_an_undisturbed_one(
    undisturbed, make_trainer, step, step_s
):
    checkpoint = Path(undisturbed[0].args.output_dir) / f"checkpoint-{step}"
    torch.manual_seed(17)
    resumed, limit, clock = limited(make_trainer, Clock(step_s), save_strategy="no")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert limit.steps == resumed.state.global_step == PLANNED
    assert_same_weights(resumed, undisturbed[0])
    before = step * STEP_S + step // 4 * EVALUATION_S  # used by the attempt that wrote the checkpoint
    assert limit.used_s == pytest.approx(before + clock.now - 1000)


def test_when_the_time_runs_out_it_stops_evaluates_and_saves_and_that_can_be_repeated(make_trainer, tmp_path):
    decided = []
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": False}
    trainer, limit, clock = limited(
        make_trainer,
        Clock(slow_after=8),
        on_decision=lambda limit: decided.append((limit.steps, limit.stop_at)),
        **epochs,
    )
    with pytest.warns(UserWarning, match=r"time limit ends the training after step \d+, of 23 planned"):
        trainer.train()
    last = trainer.state.global_step
    assert 8 < last < limit.steps == PLANNED
    assert decided == [(PLANNED, None), (PLANNED, last)]
    assert 0.8 * LIMIT_S < clock.now - 1000 <= LIMIT_S
    assert [entry["step"] for entry in trainer.state.log_history if "eval_map" in entry][-1] == last
    assert (tmp_path / "run" / f"checkpoint-{last}" / "trainer_state.json").is_file()

    again, _, _ = limited(
        make_trainer, seconds=1000.0, steps=PLANNED, stop_at=last, **{**epochs, "save_strategy": "no"}
    )
    again.train()
    assert again.state.global_step == last
    assert_same_weights(again, trainer)


def test_where_no_evaluation_comes_soon_the_plan_is_made_after_a_tenth_of_the_time(make_trainer):
    plans = []
    clock = Clock(evaluation_s=1.0)  # of two images, in steps of one: as long as training on one image of them
    trainer, _, _ = limited(
        make_trainer, clock, 30.0, on_decision=lambda limit: plans.append((limit.steps, clock.now - 1000)),
        per_device_train_batch_size=1, eval_steps=8, save_strategy="no",
    )  # fmt: skip
    trainer.train()
    # 27 s are left, two of them for the last evaluation: 22.5 s hold two more epochs but for 3 s: 8 + 2, 8 + 2, 2
    assert plans == [(3 + 18, 3.0)]
    assert trainer.state.global_step == 21
    assert clock.now - 1000 <= 30


def test_slow_first_steps_as_on_a_gpu_do_not_shorten_the_plan(make_trainer):
    measured = []
    clock = Clock(slow_until=3)
    trainer, _, _ = limited(
        make_trainer, clock, 120.0, on_decision=lambda limit: measured.append((limit.step_s, clock.now - 1000)),
        per_device_train_batch_size=1, num_train_epochs=2, eval_strategy="no", save_strategy="no",
    )  # fmt: skip
    trainer.train()
    assert measured == [(STEP_S, 12.0)]  # the first three took nine of these twelve


def test_epochs_and_known_steps_hold_where_they_are_less_than_fits(make_trainer):
    trainer, limit, _ = limited(make_trainer, num_train_epochs=2, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == limit.steps == 8
    trainer, limit, _ = limited(make_trainer, steps=3, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == limit.steps == 3


def test_a_limit_that_holds_no_schedule_and_a_schedule_that_knows_no_limit_are_refused(make_trainer):
    trainer, _, _ = limited(make_trainer, seconds=5.0, save_strategy="no")
    with pytest.raises(ValueError, match=r"time limit of 5 s is too short: .* only 0 more steps fit"):
        trainer.train()
    for changes in ({"lr_scheduler_type": "cosine"}, {"warmup_steps": 0.1}):
        trainer, _, _ = limited(make_trainer, save_strategy="no", **changes)
        with pytest.raises(ValueError, match="leaves the number of steps open"):
            trainer.train()


def test_a_run_that_ends_in_time_warns_of_nothing(make_trainer):
    trainer, _, _ = limited(make_trainer, num_train_epochs=1, save_strategy="no")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The time limit")
        trainer.train()


def _process(rank: int, folder: Path) -> None:
    # what the second process would decide by its own clock is another number, and it would leave the first one waiting
    trainer, limit, _ = limited(
        trainer_maker(folder), Clock(step_s=STEP_S * (1 + rank)), save_strategy="no", ddp_backend="gloo"
    )
    trainer.train()
    (folder / f"{rank}.txt").write_text(f"{limit.steps} {trainer.state.global_step}")


@pytest.mark.slow
def test_all_processes_keep_to_the_clock_of_the_first(tmp_path):
    in_two_processes(_process, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [f"{PLANNED} {PLANNED}"] * 2
