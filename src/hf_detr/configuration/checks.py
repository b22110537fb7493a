"""What the fields of a configuration may hold."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from huggingface_hub.errors import StrictDataclassError

_MOST = 2**31 - 1  # what a tensor's side can have
_MOST_LAYERS = 1_000


def require(config: Any, names: Iterable[str], expected: str, holds: Callable[[Any], bool]) -> None:
    """Raises ValueError for the first of these fields that does not hold what is expected."""
    for name in names:
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{name}={value!r} is not {expected}.")


def require_counts(config: Any, names: Iterable[str], least: int) -> None:
    """Whole numbers of at least `least`; of layers at most 1,000, since each is made, one after the other."""
    for name in names:
        most = _MOST_LAYERS if name.endswith("_layers") else _MOST
        expected = f"a whole number from {least} to {most:,}"
        require(config, [name], expected, lambda value, most=most: is_int(value) and least <= value <= most)


def is_int(value: Any) -> bool:
    """True and False are no numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Finite ones."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_label_map(value: Any) -> bool:
    """{class id, also as text: name}."""
    return isinstance(value, dict) and all(re.fullmatch(r"\s*\d{1,9}\s*", str(index)) for index in value)


def next_multiple(value: int, step: int) -> int:
    """The least multiple of `step` that is not below `value`."""
    return -(-value // step) * step


@contextmanager
def errors_name(source: str | PathLike) -> Iterator[None]:
    """What goes wrong while `source` is read becomes a ValueError that begins with its name."""
    try:
        yield
    except (ValueError, TypeError, RecursionError, StrictDataclassError) as error:
        raise ValueError(f"{source}: {error}") from error
