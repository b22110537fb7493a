"""`{{ name argument ... }}` on a line of its own: what a page shows of the package, pulled in when the site is built.

{{ source loss.matcher.HungarianMatcher._pair_costs }}    the code of an object, without its docstring
{{ source boxes.giou from="overlap =" to="return" }}      its lines from one that holds a text to another
{{ table results.md "### Digits, from random weights" }}  the first table below a heading of another page
{{ cli }}                                                 every command with its options
{{ fields configuration_detr.DetrConfig }}                the fields of a class with their defaults
{{ differing training.arguments.DetrTrainingArguments transformers.TrainingArguments }}  defaults unlike its base's
    {{ others reference/api.md }}                             public names that a page does not show yet
"""

import ast
import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path

from . import cli_reference, field_table

DOCS = Path(__file__).resolve().parents[1]
_PACKAGE = DOCS.parent / "src" / "hf_detr"
_MACRO = re.compile(r"^\{\{ *(.+?) *\}\}$", re.MULTILINE)


def expand(markdown: str) -> str:
    """The page with every macro replaced. Raises ValueError for an unknown macro, object, heading or line."""
    return _MACRO.sub(_replacement, markdown)


def _replacement(match: re.Match) -> str:
    name, *arguments = shlex.split(match[1])
    named = dict(argument.split("=", 1) for argument in arguments if re.match(r"(from|to)=", argument))
    positional = [argument for argument in arguments if not re.match(r"(from|to)=", argument)]
    if name not in _MACROS:
        raise ValueError(f"{match[0]}: no macro {name!r}; there are {', '.join(_MACROS)}.")
    try:
        return _MACROS[name](*positional, **{f"{key}_": value for key, value in named.items()})
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{match[0]}: {error}") from error


def _source(name: str, from_: str | None = None, to_: str | None = None) -> str:
    file, node = _definition(name)
    lines = file.read_text(encoding="utf-8").splitlines()
    if from_ is None and to_ is None:
        start = min((node.lineno, *(one.lineno for one in node.decorator_list))) - 1
        docstring = node.body[0] if ast.get_docstring(node) is not None and len(node.body) > 1 else None
        head = lines[start : docstring.lineno - 1] if docstring else lines[start : node.lineno - 1]
        shown = head + lines[docstring.end_lineno if docstring else node.lineno - 1 : node.end_lineno]
    else:
        lines = lines[node.lineno - 1 : node.end_lineno]
        first = _line(lines, from_, 0) if from_ else 0
        last = _line(lines, to_, first) if to_ else len(lines) - 1
        shown = lines[first : last + 1]
    title = file.relative_to(_PACKAGE.parent).as_posix()
    return f'```python title="{title}"\n{textwrap.dedent(chr(10).join(shown))}\n```'


def _definition(name: str) -> tuple[Path, ast.FunctionDef | ast.ClassDef]:
    """The file and the definition of a class, function or method: as it is written, whatever wraps it when it runs."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        file = _PACKAGE.joinpath(*parts[:split]).with_suffix(".py")
        if not file.exists():
            continue
        node = ast.parse(file.read_text(encoding="utf-8"))
        for wanted in parts[split:]:
            named = [one for one in node.body if getattr(one, "name", None) == wanted]
            if not named:
                raise ValueError(f"{file.name} has no {wanted}.")
            [node] = named
        return file, node
    raise ValueError(f"there is no file for {name}.")


def _line(lines: list[str], text: str, start: int) -> int:
    for number in range(start, len(lines)):
        if text in lines[number]:
            return number
    raise ValueError(f"no line holds {text!r}.")


def table(page: str, heading: str) -> str:
    """The first table below a line of a page of docs/, as it stands there."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    if heading not in lines:
        raise ValueError(f"{page} has no line {heading!r}.")
    rows: list[str] = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("|"):
            rows.append(line)
        elif rows or line.startswith("#"):
            break
    if not rows:
        raise ValueError(f"no table follows {heading!r} of {page}.")
    return "\n".join(rows)


def _fields(name: str) -> str:
    return field_table.markdown(_class(f"hf_detr.{name}"))


def _differing(name: str, base: str) -> str:
    return field_table.differing(_class(f"hf_detr.{name}"), _class(base))


def _class(name: str) -> type:
    module, _, own_name = name.rpartition(".")
    return getattr(import_module(module), own_name)


def _others(page: str) -> str:
    """References to the public names that a page does not show yet."""
    import hf_detr

    text = (DOCS / page).read_text(encoding="utf-8")
    missing = [name for name in hf_detr.__all__ if not re.search(rf"\b{name}\b", text)]
    objects = [getattr(hf_detr, name) for name in missing]
    objects = [one for one in objects if hasattr(one, "__module__") and f"::: {one.__module__}\n" not in text]
    shown = [f"::: {one.__module__}.{one.__name__}" for one in objects]
    return "\n\n".join(["## Further", *shown]) if shown else ""


_MACROS = {"source": _source, "table": table, "cli": cli_reference.markdown, "fields": _fields}
_MACROS |= {"differing": _differing, "others": _others}
