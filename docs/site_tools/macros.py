"""`{{ name argument ... }}` on a line of its own: what a page shows of the package, pulled in when the site is built.

{{ source loss.matcher.HungarianMatcher._pair_costs }}    the code of an object, without its docstring
{{ source boxes.giou from="overlap =" to="return" }}      its lines from one that holds a text to one that holds another
{{ table results.md "### Digits, from random weights" }}  the first table below a heading of another page
{{ cli }}                                                 every command with its options
{{ fields configuration_detr.DetrConfig }}                the fields of a class with their defaults
{{ differing training.arguments.DetrTrainingArguments transformers.TrainingArguments }}  defaults unlike its base's
"""

import ast
import inspect
import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path

from . import cli_reference, field_table

DOCS = Path(__file__).resolve().parents[1]
_MACRO = re.compile(r"^\{\{ *(.+?) *\}\}$", re.MULTILINE)


def expand(markdown: str) -> str:
    """The page with every macro replaced. Raises ValueError for an unknown macro, object, heading or line."""
    return _MACRO.sub(_replacement, markdown)


def _replacement(match: re.Match) -> str:
    name, *arguments = shlex.split(match[1])
    named = dict(argument.split("=", 1) for argument in arguments if re.match(r"(from|to)=", argument))
    positional = [argument for argument in arguments if not re.match(r"(from|to)=", argument)]
    macros = {
        "source": _source,
        "table": table,
        "cli": cli_reference.markdown,
        "fields": _fields,
        "differing": _differing,
    }
    if name not in macros:
        raise ValueError(f"{match[0]}: no macro {name!r}; there are {', '.join(macros)}.")
    try:
        return macros[name](*positional, **{f"{key}_": value for key, value in named.items()})
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{match[0]}: {error}") from error


def find(name: str):
    """The object of a dotted name below hf_detr, such as `loss.matcher.HungarianMatcher`."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = import_module("hf_detr." + ".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            found = getattr(found, attribute)
        return found
    raise ValueError(f"hf_detr has no {name}.")


def _source(name: str, from_: str | None = None, to_: str | None = None) -> str:
    found = find(name)
    code = textwrap.dedent(inspect.getsource(found))
    lines = code.splitlines()
    if from_ is None and to_ is None:
        lines = _without_docstring(code)
    else:
        first = _line(lines, from_, 0) if from_ else 0
        last = _line(lines, to_, first) if to_ else len(lines) - 1
        lines = textwrap.dedent("\n".join(lines[first : last + 1])).splitlines()
    file = Path(inspect.getsourcefile(found)).resolve()
    title = file.relative_to(Path(import_module("hf_detr").__file__).resolve().parents[1])
    return "\n".join((f'```python title="{title}"', *lines, "```"))


def _line(lines: list[str], text: str, start: int) -> int:
    for number in range(start, len(lines)):
        if text in lines[number]:
            return number
    raise ValueError(f"no line holds {text!r}.")


def _without_docstring(code: str) -> list[str]:
    lines = code.splitlines()
    body = ast.parse(code).body[0].body
    is_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1
    return lines[: body[0].lineno - 1] + lines[body[0].end_lineno :] if is_docstring else lines


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
    return field_table.markdown(find(name))


def _differing(name: str, base: str) -> str:
    module, _, base_name = base.rpartition(".")
    return field_table.differing(find(name), getattr(import_module(module), base_name))
