"""Tables of a configuration's fields: the text from the class's docstring, the default from an instance."""

import inspect
import re
from dataclasses import MISSING, fields, is_dataclass

_SECTION = re.compile(r"^(\S.*):$")
_ITEM = re.compile(r"^    ([a-z_][\w, ]*): (.*)$")


def markdown(described: type) -> str:
    """One table for each section of the docstring that lists fields as `name: text`."""
    parts: list[str] = []
    title, rows = "", []
    paragraphs = inspect.getdoc(described).splitlines()
    previous = ""
    for line in [*paragraphs, "End:"]:
        item = _ITEM.match(line)
        if _SECTION.match(line) or (line and not line.startswith(" ")):
            if rows:
                heading, _, rest = title.removesuffix(":").replace(", which", "; they").partition("; ")
                rest = f"{rest[0].upper()}{rest[1:]}.\n" if rest else ""
                parts.append(
                    "\n".join((f"## {heading}\n", rest, "| field | default | |", "| --- | --- | --- |", *rows))
                )
            joined = f"{previous} {line}".strip() if previous else line
            title, rows, previous = joined.removesuffix(":") + ":", [], "" if line.endswith(":") else joined
        elif item and title != "Raises:":
            names = [name.strip() for name in item[1].split(",")]
            known = [name for name in names if _default(described, name) is not None]
            if known:
                shown = ", ".join(f"`{name}`" for name in names)
                defaults = ", ".join(filter(None, dict.fromkeys(_default(described, name) for name in known)))
                rows.append(f"| {shown} | {defaults} | {_escaped(item[2])} |")
        elif line.startswith("        ") and rows:
            rows[-1] = rows[-1].removesuffix(" |") + f" {_escaped(line.strip())} |"
        elif not line:
            previous = ""
    return "\n\n".join(parts)


def differing(described: type, base: type) -> str:
    """A table of the dataclass fields whose defaults are not those of the class it is made from."""
    before = {field.name: field.default for field in fields(base)}
    rows = [
        f"| `{field.name}` | `{_written(before[field.name])}` | `{_written(field.default)}` |"
        for field in fields(described)
        if field.name in before and field.default is not MISSING and field.default != before[field.name]
    ]
    return "\n".join(("| field | Transformers | here |", "| --- | --- | --- |", *rows))


def _default(described: type, name: str) -> str | None:
    """The default as it is written in code; None for what is no field."""
    if is_dataclass(described):
        for field in fields(described):
            if field.name == name:
                return "" if field.default is MISSING else f"`{_written(field.default)}`"
    if hasattr(described, name) and not callable(getattr(described, name)):
        value = getattr(described, name)
        return "" if isinstance(value, property) else f"`{_written(value)}`"
    parameters = inspect.signature(described.__init__).parameters
    return "" if name in parameters else None


def _written(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
