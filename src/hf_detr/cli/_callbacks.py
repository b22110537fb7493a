"""What `hf-detr train` does between the steps: one progress bar, and stopping when it is asked to."""

import os
import signal
from typing import Any

from transformers import TrainerCallback, TrainerState

from hf_detr.training.time_limit import steps_per_epoch

from ._running import progress_bar

# Epochs of a run whose length a time limit decides: more than ever fit.
UNPLANNED = 1_000_000


class Stopped(Exception):
    """The training was asked to stop, and has written a checkpoint."""


class Interruption(TrainerCallback):
    """Ctrl-C, or the SIGTERM of a cluster, becomes a checkpoint after the step at hand; a second one stops at once."""

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a data loader's worker: the training decides
        self.asked = True
        self.__exit__()
        print("\nstopping: writing a checkpoint after this step; once more to stop at once without one", flush=True)

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        """Asks for a checkpoint, unless the epoch ends here and writes one after its evaluation."""
        ends_epoch = state.global_step % (steps_per_epoch(args, train_dataloader) or state.max_steps) == 0
        if self.asked and not ends_epoch and state.global_step < state.max_steps:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args, state, control, **kwargs):
        """Stops once the checkpoint is on the disk."""
        if self.asked and state.global_step < state.max_steps:
            of = f" of {planned:,}" if (planned := _planned(state)) else ""
            raise Stopped(f"stopped after step {state.global_step:,}{of}; a checkpoint is written.")


class LastStep(TrainerCallback):
    """Evaluates and saves after the last step, wherever it falls between evaluations."""

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for both."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class OneBar(TrainerCallback):
    """One bar for the whole training, with the last loss and AP."""

    def __init__(self):
        self.bar, self.seen = None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress_bar(_planned(state), "train", "step")
            self.bar.update(state.global_step)
            self.bar.unpause()  # what an earlier run did is not this one's speed

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:  # a bar without a total has no truth
            self.bar.total = _planned(state)
            self.bar.set_description("train", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.set_description("evaluate", refresh=False)
            self.bar.update(0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {"loss": "loss", "eval_map": "AP", "eval_map_50": "AP50", "eval_pq": "PQ"}
        self.seen |= {shown[name]: f"{value:.3f}" for name, value in (logs or {}).items() if name in shown}
        if self.bar is not None:
            self.bar.set_postfix({"epoch": f"{state.epoch or 0:.1f}", **self.seen})

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Ends the bar where it stands."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _planned(state: TrainerState) -> int | None:
    """The steps of the whole training; None while a time limit leaves them open."""
    return state.max_steps if state.max_steps < UNPLANNED else None
