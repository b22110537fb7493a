"""The reference of the command line, from the parsers themselves."""

import argparse
import re
from importlib import import_module


def markdown() -> str:
    """Every command: its usage, and a table of its options for each group."""
    from hf_detr.cli.main import _COMMANDS

    return "\n\n".join(_command(name, line) for name, line in _COMMANDS.items())


def _command(name: str, help_line: str) -> str:
    parser = argparse.ArgumentParser(prog=f"hf-detr {name}", formatter_class=_Wide)
    import_module(f"hf_detr.cli.{name}").add_arguments(parser)
    usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
    usage = usage if len(usage) < 100 else f"hf-detr {name} [OPTIONS] " + " ".join(_positionals(parser))
    parts = [f"## hf-detr {name}", f"{help_line[0].upper()}{help_line[1:]}.", f"```\n{usage.strip()}\n```"]
    for group in parser._action_groups:  # argparse has no public way to its groups
        rows = [_row(action) for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if rows:
            parts.append("\n".join((f"| {group.title} | |", "| --- | --- |", *rows)))
    if parser.epilog:
        parts.append(_escaped(parser.epilog))
    return "\n\n".join(parts)


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, width=10_000)


def _positionals(parser: argparse.ArgumentParser) -> list[str]:
    return [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    if action.nargs == 0:
        value = ""
    value = " ".join(value) if isinstance(value, tuple) else value
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    name = f"{names} {value}".strip() if action.option_strings else names
    formatted = (action.help or "") % {**vars(action), "prog": "hf-detr"} if action.help else ""
    return f"| `{name}`".replace("|", "\\|")[1:] + f" | {_escaped(formatted)} |"


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").strip()
