"""What happens between the steps: averaging the weights, and stopping when nothing gets better."""

from collections.abc import Callable, Mapping, Sequence

from transformers import TrainerCallback

from .ema import WeightAverage


class UpdateAverage(TrainerCallback):
    """Takes every step's weights into a `WeightAverage`, if there is one at the time."""

    def __init__(self, average: Callable[[], WeightAverage | None]):
        self._average = average

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Before the step is logged, evaluated or saved."""
        average = self._average()
        if average is not None:
            average.update(model, state.global_step)


class EarlyStopping(TrainerCallback):
    """Stops when the last `patience` evaluations did not better the metric of the best model by more than `threshold`.

    It counts in the run's own history, so a resumed run stops where an undisturbed one would.
    """

    def __init__(self, patience: int, threshold: float = 0.0):
        self.patience, self.threshold = patience, threshold

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Asks for the end of the training where nothing got better."""
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        sign = 1 if args.greater_is_better else -1
        values = [sign * value for value in _values(state.log_history, name)]
        if evaluations_since_best(values, self.threshold) >= self.patience:
            control.should_training_stop = True


def evaluations_since_best(values: Sequence[float], threshold: float = 0.0) -> int:
    """How many values came after the last that was greater by more than `threshold` than the best before it."""
    best, since = float("-inf"), 0
    for value in values:
        if value > best + threshold:
            best, since = value, 0
        else:
            since += 1
    return since


def _values(history: Sequence[Mapping], name: str) -> list[float]:
    """Of each step the last value, so that evaluating by hand in between counts once."""
    return list({entry.get("step"): entry[name] for entry in history if name in entry}.values())
