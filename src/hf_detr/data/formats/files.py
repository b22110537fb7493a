"""Text, JSON and YAML files, and the numbers in them; whatever is wrong with them is one line that names the file."""

import json
import math
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from pathlib import Path
from typing import Any

import yaml

from ..box_policy import Box, is_area_of
from .base import Findings

_INT64, _INT32 = 2**63, 2**31
_MAX_AREA_PX = 1e38  # as the schema's float32 holds it
_BYTE_ORDER_MARKS = {BOM_UTF32_LE: "utf-32", BOM_UTF32_BE: "utf-32", BOM_UTF16_LE: "utf-16", BOM_UTF16_BE: "utf-16"}


def is_bad_area(area: float, box_xywh_px: Box) -> bool:
    """Whether an area cannot be right; that of a bad box is no fault of its own, for `BoxPolicy` judges the box."""
    own = is_area_of(area, box_xywh_px) and not _MAX_AREA_PX <= abs(area) < math.inf
    return not (0 <= area < _MAX_AREA_PX or own)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says. Raises ValueError naming the file."""
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not {encoding.removesuffix('-sig').upper()} text (byte {content[error.start]:#04x}, in "
            "another encoding such as Windows-1252 or Latin-1); save the file as UTF-8."
        ) from error


def read_lines(path: Path, findings: Findings, split: str | None = None) -> list[str]:
    """The lines of a text file; none, with the reason reported, where it cannot be read."""
    try:
        return read_text(path).splitlines()
    except OSError as error:
        findings.error("corrupt annotation", path, f"cannot be read ({error.strerror}); check the file.", split)
    except ValueError as error:
        where, _, message = str(error).partition(": ")
        findings.error("corrupt annotation", where, message, split)
    return []


def read_json(path: Path, unique_keys: bool = False) -> Any:
    """The content of a JSON file in UTF-8, 16 or 32. Raises ValueError naming file, line and column; with
    `unique_keys` also for a key that is given twice, which costs time with half a gigabyte."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deep); export it again.") from None
    except json.JSONDecodeError as error:
        reason = error if error.doc.strip() else "the file is empty"
        raise ValueError(f"{path}: not valid JSON ({reason}); export it again.") from error
    except ValueError as error:  # read_text's, or a number of more digits than Python reads
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}; export it again.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r} is given twice")
        content[key] = value
    return content


class _Words(yaml.BaseLoader):
    """YAML whose scalars are the words that stand there: `yes` and `no` are names, and 010 is no octal number.

    Aliases of lists and dicts are refused: a few lines of them unfold into gigabytes. So are keys that are given twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if not isinstance(self.anchors.get(event.anchor), yaml.ScalarNode):
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: the alias *{event.anchor} is no plain value")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, every scalar a string. Raises ValueError naming the file."""
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_Words)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML ({reason:.300}); correct it.") from error


def whole_number(value: Any) -> int | None:
    """A whole number of 64 bits, or one written as text; None for anything else: floats are not truncated."""
    if isinstance(value, str) and len(value) < 21 and value.strip().removeprefix("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
        return None
    return value


def pixels(value: Any) -> int | None:
    """The width or height of an image: 0 where nothing is said, None for what no image can have."""
    if value is None or value == "":
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number.is_integer() and 0 <= number < _INT32 else None


def is_true(value: Any) -> bool:
    """Whether a flag is set, however it is written: 1, true, "True", "1"."""
    return str(value).strip().lower() in ("1", "1.0", "true", "yes")
