"""The thresholds of classes that a processor carries in its settings, and what a call makes of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

SAVED = "saved"  # what a call's `threshold` is unless one is given
UNLESS_SAVED = 0.5  # of a class without a saved threshold; stock's default
_REMEDY = "write them again with hf-detr evaluate MODEL DATA --save-thresholds, or remove class_thresholds"

Threshold = float | Literal["saved"] | None


class SavedThresholds:
    """The part of `DetrImageProcessor` that knows the saved thresholds.

    Attributes:
        class_thresholds: {label: threshold} of the classes that have one; None for no class.
    """

    class_thresholds: dict[int, float] | None

    def threshold_of(self, label: int) -> float:
        """Above which score a detection of the class is kept where a call names no threshold: the saved one, or 0.5."""
        return (self.class_thresholds or {}).get(label, UNLESS_SAVED)

    def _thresholds_of_call(
        self,
        threshold: Threshold,
        class_thresholds: Mapping[int, float] | Sequence[float] | None,
        num_classes: int,
    ) -> tuple[float | None, Mapping[int, float] | Sequence[float] | None]:
        """The same with the saved thresholds in place of "saved". ValueError where the model lacks their classes."""
        if not isinstance(threshold, str):
            return threshold, class_thresholds
        if threshold != SAVED:
            raise ValueError(f"threshold={threshold!r}: expected a probability in [0, 1], 'saved', or None.")
        saved = self.class_thresholds or {}
        if saved and max(saved) >= num_classes:
            raise ValueError(
                f"preprocessor_config.json: class_thresholds has the class {max(saved)}, and the model's are 0 to "
                f"{num_classes - 1}; {_REMEDY}."
            )
        if class_thresholds is None or isinstance(class_thresholds, Mapping):
            class_thresholds = {**saved, **(class_thresholds or {})}
        return UNLESS_SAVED, class_thresholds


def as_class_thresholds(value: Any, place: str = "") -> dict[int, float] | None:
    """{label: threshold} of a file's or a user's value, whose labels may be decimal strings, as JSON has them.

    Raises ValueError, naming the `place` and the entry, for anything but numbers in [0, 1] by class id.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}class_thresholds={value!r}: expected {{class id: score}}; {_REMEDY}.")
    checked: dict[int, float] = {}
    for key, score in value.items():
        try:
            label = -1 if isinstance(key, bool | float) else int(key)
            number = math.nan if isinstance(score, bool | str) else float(score)
        except (TypeError, ValueError, OverflowError):
            label, number = -1, math.nan
        if label < 0 or str(label) != str(key) or not 0 <= number <= 1:
            raise ValueError(
                f"{place}class_thresholds: {key!r}: {score!r} is no class id with a score in [0, 1]; {_REMEDY}."
            )
        checked[label] = number
    return checked or None
