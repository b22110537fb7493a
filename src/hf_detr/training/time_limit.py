"""A training that ends in time: how many steps fit is decided once, early, and holds from then on."""

import bisect
import time
import warnings
from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

# Of the limit: the number of steps is decided when so much of it is used, or at an evaluation that comes sooner.
_MEASURED = 0.1
_FEWEST_MEASURED = 3  # steps; the first one starts workers and caches, and does not count where there are others
_PLANNED = 0.9  # of the time that is left; the rest is for steps that take longer than those measured


class TimeLimit(TrainerCallback, ExportableState):
    """Ends a training within `seconds`, its last evaluation and checkpoint included: `callbacks=[TimeLimit(1200)]`.

    Steps are measured until a tenth of the limit is used, or until the first evaluation ends, whichever is sooner;
    the later half of them counts, since the first ones load libraries and start workers. What then fits beside the
    evaluations to come, into nine tenths of the time left, becomes `state.max_steps`, if that is not less already:
    `DetrTrainer` fits its schedule to it. Set `num_train_epochs` high enough. An evaluation not seen yet is taken
    to cost as much an image as training does.

    The number is decided once and kept in every checkpoint, as is the time used. So a resumed run does not depend on
    the clock, and ends as one of `max_steps=limit.steps` does. The time of steps that a crash lost does not count.
    Should the time run out before the planned steps, the training stops there, evaluates and saves; this step is
    `stop_at`.

    Args:
        seconds: of the whole training, over all its attempts.
        evaluated_images: of one evaluation; used until one was measured.
        images_after: that are evaluated after the training, within the limit.
        steps: the decided number, where it is known.
        stop_at: the step after which the time of a run ran out that is to be repeated.
        used_s: what is used before the first step.
        on_decision: called with the callback when `steps` or `stop_at` is decided, in every process.
        clock: in seconds.

    Raises:
        ValueError: in training: a schedule that needs its length from the start, or a limit too short for any schedule.
    """

    def __init__(
        self,
        seconds: float,
        evaluated_images: int = 0,
        images_after: int = 0,
        steps: int | None = None,
        stop_at: int | None = None,
        used_s: float = 0.0,
        on_decision: Callable[["TimeLimit"], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.seconds, self.evaluated_images, self.images_after = seconds, evaluated_images, images_after
        self.steps, self.stop_at, self.on_decision = steps, stop_at, on_decision
        self.step_s: float | None = None  # of one step
        self.evaluation_s: float | None = None  # of one evaluation
        self._used_before_s, self._clock = used_s, clock
        self._begun: float | None = None  # the clock's time when nothing was used
        self._ends_s: list[float] = []  # what was used at the end of each step of this attempt that was measured
        self._began_at_s = used_s  # used, when this attempt began
        self._is_training = False

    @property
    def used_s(self) -> float:
        """Seconds of training so far, over all attempts."""
        return self._used_before_s if self._begun is None else self._clock() - self._begun

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps."""
        args = {name: getattr(self, name) for name in ("seconds", "evaluated_images", "images_after")}
        kept = {name: getattr(self, name) for name in ("steps", "stop_at", "step_s", "evaluation_s")}
        return {"args": {**args, "used_s": self.used_s}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes up what the checkpoint keeps, if it has some."""
        if args.get_warmup_steps(10**6) != args.get_warmup_steps(10**7) or args.lr_scheduler_type not in (
            "constant", "constant_with_warmup",
        ):  # fmt: skip
            raise ValueError(
                "A time limit leaves the number of steps open at first; take lr_scheduler_type='constant' with "
                "lr_drop_at, and warm-up in steps."
            )
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if self._begun is None:
            self._begun = self._clock() - saved["args"]["used_s"]
            for name, value in saved["attributes"].items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        self._ends_s, self._is_training = [], True
        self._began_at_s = _of_first_process(self.used_s, args)
        self._apply(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluations from now on tell nothing."""
        self._is_training = False

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs,
    ) -> None:
        """Measures, decides when enough is measured, and stops when the time runs out."""
        used_s = _of_first_process(self.used_s, args)
        step = state.global_step
        every = steps_between_evaluations(args, state, train_dataloader)
        is_due = every is not None and step % every == 0
        if self.steps is None or self.evaluation_s is None:  # from the first evaluation on, steps are not alone
            self._ends_s.append(used_s)
            last = len(self._ends_s) - 1
            middle = last // 2
            if last:
                self.step_s = (self._ends_s[last] - self._ends_s[middle]) / (last - middle)
            elif is_due:
                self.step_s = used_s - self._began_at_s
        enough = len(self._ends_s) >= _FEWEST_MEASURED and used_s >= _MEASURED * self.seconds
        if self.steps is None and enough and not is_due:  # else at the end of the evaluation
            self._decide(args, state, used_s, every, train_dataloader)
        step_s = self.step_s or 0.0
        evaluations_s = self._evaluation_s(args, state) * (2 if is_due else 1) + self._after_s(args, state)
        is_out = used_s + step_s + evaluations_s > self.seconds
        if step < state.max_steps and (is_out or step == self.stop_at):
            if step != self.stop_at:
                warnings.warn(
                    f"The time limit ends the training after step {step}, "
                    + ("before the number of steps was decided." if self.steps is None else f"of {self.steps} planned.")
                )
                self.stop_at = step
                self._tell()
            control.should_training_stop = True  # with epochs the end of this one evaluates and saves
            control.should_evaluate |= args.eval_strategy == "steps"
            control.should_save |= args.save_strategy == "steps"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        train_dataloader: DataLoader | None = None,
        **kwargs,
    ) -> None:
        """Learns what an evaluation costs; decides, where that was waited for."""
        if not self._is_training or "eval_runtime" not in (metrics or {}):
            return
        self.evaluation_s = _of_first_process(metrics["eval_runtime"], args)
        if self.steps is None and self.step_s is not None and not control.should_training_stop:
            used_s = _of_first_process(self.used_s, args)
            every = steps_between_evaluations(args, state, train_dataloader)
            self._decide(args, state, used_s, every, train_dataloader)

    def _decide(
        self, args: TrainingArguments, state: TrainerState, used_s: float, every: int | None, loader: DataLoader | None
    ) -> None:
        step, step_s, evaluation_s = state.global_step, self.step_s, self._evaluation_s(args, state)
        left_s = _PLANNED * (self.seconds - used_s - evaluation_s - self._after_s(args, state))

        def cost_s(more: int) -> float:
            return more * step_s + (0 if every is None else evaluation_s * ((step + more) // every - step // every))

        most = min(int(max(left_s, 0.0) / max(step_s, 1e-9)), state.max_steps - step)
        steps = step + max(0, bisect.bisect_right(range(most + 1), left_s, key=cost_s) - 1)
        # a run that knows its length from the start would have let its rates fall by now, or its augmentation end
        is_late = round(steps * (getattr(args, "lr_drop_at", None) or 1.0)) <= step
        if getattr(getattr(loader, "dataset", None), "closing", None) is not None:
            # batches are asked for ahead: one by Accelerate, others by workers
            ahead = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
            is_late |= round(steps * args.augment_until) < step + -(-ahead // args.gradient_accumulation_steps)
        if is_late and steps < state.max_steps:
            raise ValueError(
                f"The time limit of {self.seconds:g} s is too short: after step {step} {used_s:.0f} s are used, a step "
                f"takes {step_s:.2g} s and an evaluation {evaluation_s:.0f} s, so only {steps - step} more steps fit. "
                "Give more time, fewer images to evaluate on, or smaller ones."
            )
        self.steps = steps
        self._apply(state)
        self._tell()

    def _tell(self) -> None:
        if self.on_decision is not None:
            self.on_decision(self)

    def _apply(self, state: TrainerState) -> None:
        if self.steps is not None:
            state.max_steps = min(state.max_steps, self.steps)

    def _evaluation_s(self, args: TrainingArguments, state: TrainerState) -> float:
        if args.eval_strategy == "no":
            return 0.0
        return self._image_s(args, state) * self.evaluated_images if self.evaluation_s is None else self.evaluation_s

    def _after_s(self, args: TrainingArguments, state: TrainerState) -> float:
        if self.evaluation_s is not None and self.evaluated_images:
            return self.evaluation_s / self.evaluated_images * self.images_after
        return self._image_s(args, state) * self.images_after

    def _image_s(self, args: TrainingArguments, state: TrainerState) -> float:
        """Of training on one image."""
        images = (state.train_batch_size or args.train_batch_size) * args.gradient_accumulation_steps * args.world_size
        return (self.step_s or 0.0) / images


def steps_between_evaluations(
    args: TrainingArguments, state: TrainerState, train_dataloader: DataLoader | None
) -> int | None:
    """Steps from one evaluation to the next; None where there are none on the way."""
    if args.eval_strategy == "steps":
        return state.eval_steps
    return steps_per_epoch(args, train_dataloader) if args.eval_strategy == "epoch" else None


def steps_per_epoch(args: TrainingArguments, train_dataloader: DataLoader | None) -> int | None:
    """Optimizer steps of one pass; None for data without a length."""
    try:
        return max(1, -(-len(train_dataloader) // args.gradient_accumulation_steps))
    except TypeError:
        return None


def _of_first_process(value: float, args: TrainingArguments) -> float:
    """The first process's number: all must decide the same, and no two clocks agree."""
    if args.world_size == 1:
        return value
    [value] = broadcast_object_list([value])
    return value
