"""With which settings a run was started, and whether it may be started or go on with these."""

import argparse
import json
from pathlib import Path
from typing import Any

from ._outputs import write_text
from ._sources import read_json_object

SETTINGS = "run.json"
# What may differ between a run and its resumption; all else would make it another run.
_MAY_CHANGE = ("epochs", "output", "device", "workers", "no_check", "push_to_hub", "license")


def check_run_folder(args: argparse.Namespace) -> None:
    """Raises ValueError for a folder that holds something, without --resume; and with it, for settings that differ from
    the run's, or a folder without a run."""
    folder = args.output
    if not args.resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            hint = "go on with it by --resume, or" if (folder / SETTINGS).is_file() else "empty it, or"
            raise ValueError(f"--output {folder} exists and is not empty; {hint} name another folder.")
        return
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"--resume: {folder} holds no run ({SETTINGS}); start without --resume.")
    before = read_json_object(folder / SETTINGS)
    _take_decisions(args, before)
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in settings_of(args).items()
        if name not in _MAY_CHANGE and before.get(name, value) != value
    ]
    if changed:
        raise ValueError(
            f"--resume: another command than in {folder / SETTINGS} ({'; '.join(changed)}); give the same arguments."
        )


def _take_decisions(args: argparse.Namespace, before: dict[str, Any]) -> None:
    """What the run was left to decide for itself, it has decided for good."""
    from hf_detr.training.automatic import RULES  # imports torch

    args.task = args.task or before.get("task")
    for name in RULES:
        if getattr(args, name) is None:
            setattr(args, name, before.get(name))
    if args.batch_size == "auto":
        args.batch_size = before.get("batch_size")
    if args.time_limit is not None:
        args.max_steps = args.max_steps or before.get("max_steps")
        args.stop_after = args.stop_after or before.get("stop_after")


def write_settings(args: argparse.Namespace) -> None:
    """Keeps the settings for a later --resume, and for --config. Whole, or as they were."""
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(args.output / SETTINGS, json.dumps(settings_of(args), indent=2) + "\n")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that make the run what it is, as JSON takes them."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("command", "command_line", "config", "resume", "explain")
    }
