"""Options from a YAML or JSON file, by their names with underscores, as HfArgumentParser has them."""

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path

_NOT_IN_FILES = ("command", "command_line", "config")
_LISTS = ("class_names",)
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NOTHING = ("", "null", "~")  # as YAML writes it


class _FileParser(argparse.ArgumentParser):
    """Speaks of a file where it finds a mistake."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def error(self, message: str) -> None:
        """Raises ValueError, in place of the usage and an exit."""
        raise ValueError(f"{self.path}: {message}")


def with_config(
    args: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """The arguments again, with those of the file `args.config` where the command line has no others.

    Raises ValueError for a file that is no mapping, unknown names and impossible values, each with the file.
    """
    of_file = _words(args)
    parser = _FileParser(args.config)
    add_arguments(parser)
    parser.parse_args(of_file)
    own = args.command_line[args.command_line.index(args.command) + 1 :]
    return parser.parse_args([*of_file, *own], argparse.Namespace(command=args.command, command_line=args.command_line))


def _words(args: argparse.Namespace) -> list[str]:
    """What the file says, in the words of a command line."""
    from hf_detr.data.formats.files import read_json, read_yaml  # imports more than --help should wait for

    path, names = args.config, [name for name in vars(args) if name not in _NOT_IN_FILES]
    content = read_json(path, unique_keys=True) if path.suffix == ".json" else read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected options, such as 'epochs: 20', got {type(content).__name__}.")
    words, taken = [], set()
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in taken:
            raise ValueError(f"{path}: {name} is given twice, with and without dashes; leave out one of them.")
        taken.add(name)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else "hf-detr train --help has them."
            raise ValueError(f"{path}: unknown option {str(key)!r}; {hint}")
        if value is None or value in _NOTHING:
            continue
        if isinstance(value, str) and value.startswith("~/"):  # as a shell does
            value = str(Path(value).expanduser())
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict) or (isinstance(value, list) and name not in _LISTS):
            raise ValueError(f"{path}: {key}: expected one value, got {value!r:.80}.")
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        elif isinstance(vars(args)[name], bool):
            if str(value).lower() not in _FLAGS:
                raise ValueError(f"{path}: {key}: expected true or false, got {value!r}.")
            words += [flag] if _FLAGS[str(value).lower()] else []
        elif name != "data":
            words.append(f"{flag}={value}")
        elif args.data is None:
            words.insert(0, str(value))
    return [*words, "--config", str(path)]  # ends a list, which would take the data set's name as well
