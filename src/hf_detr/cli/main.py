"""`hf-detr COMMAND`: finds the command and turns a user's mistake into one clear line and exit code 2.

Each command is a module of this package with `add_arguments(parser)` and `run(args) -> exit code`; it is imported only
when it is asked for, so that `--help` is quick.
"""

import argparse
import os
import sys
import warnings
from importlib import import_module
from typing import NoReturn

from hf_detr import __version__
from hf_detr.wording import printable

from ._errors import in_one_line

# command -> what it does, in the order of a project
_COMMANDS = {
    "check": "report what a data set holds and every problem in it",
    "train": "fine-tune a detector on a data set, or train a new one",
    "evaluate": "measure COCO average precision, or panoptic quality, of a model on a data set",
    "compare": "measure several models on one data set, and whether they differ by more than chance",
    "predict": "find the objects in images and videos, as JSON and drawn",
    "explain": "show on one page what a detector looked at in an image, and which of its layers decided",
    "serve": "show a detector on a web page, and answer programs over HTTP",
    "demo": "train a small DETR on generated scenes: a check that everything works",
    "export": "write a detector as ONNX, OpenVINO, ExecuTorch or torch.export, checked against the model",
    "benchmark": "measure AP, time and memory of a model in every format that runs here",
    "convert": "turn a checkpoint of the original DETR into one that from_pretrained reads",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors."""
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):  # None where a service started us without
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # names of files and classes, on any terminal
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _Parser(prog="hf-detr", description="DETR: train, evaluate and use object detectors.")
    parser.add_argument("--version", action="version", version=f"hf-detr {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module = None
    for name, help_line in _COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == chosen:
            module = import_module(f"hf_detr.cli.{name}")
            module.add_arguments(command)
    args = parser.parse_args(argv)
    args.command_line = argv
    # for those who read them here, the line of code that warns says nothing
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"hf-detr {args.command}: warning: {message}\n"
    try:
        code = module.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"\nhf-detr {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = in_one_line(error, args)
        if line is None:  # a fault of the program, which its authors want to see
            raise
        print(f"hf-detr {args.command}: error: {printable(line)}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())
