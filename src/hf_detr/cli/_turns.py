"""The contestants of `hf-detr benchmark`, each in a process of its own, measured in turn."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hf_detr.wording import printable


class Contestant(NamedTuple):
    """See `_timing`."""

    kind: str
    source: str
    device: str


def take_turns(
    contestants: Mapping[str, Contestant], images: Sequence[Tensor], threads: int, turns: int, folder: Path
) -> dict[str, dict[str, Any] | str]:
    """What each took for an image: median `ms`, `ms_of` each turn, `peak_bytes`, `gpu_bytes`; or why it ended.

    All stay loaded, and one computes at a time, so that whatever else slows the machine slows all of them. `folder` is
    for what the processes read.
    """
    from ._running import progress_bar

    file = folder / "images.npz"
    np.savez(file, *(image.numpy() for image in images))
    processes: dict[str, _Process] = {}
    results: dict[str, dict[str, Any] | str] = {}
    try:
        with progress_bar(len(contestants) * (turns + 1), "time", "turn") as bar:
            for name, contestant in contestants.items():
                spec = {**contestant._asdict(), "images": str(file), "threads": threads}
                processes[name] = _Process(spec)
                if processes[name].answer() is None:
                    results[name] = processes.pop(name).reason()
                bar.update()
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
            for _ in range(turns):
                for name in list(processes):
                    answer = processes[name].measured()
                    if answer is None:
                        results[name] = processes.pop(name).reason()
                    else:
                        answers[name].append(answer)
                    bar.update()
    finally:
        for process in processes.values():
            process.end()
    for name in processes:
        turns_ms = [answer["ms"] for answer in answers[name]]
        last = answers[name][-1]
        results[name] = {
            "ms": statistics.median(ms for turn in turns_ms for ms in turn),
            "ms_of_turns": [statistics.median(turn) for turn in turns_ms],
            "peak_bytes": last["peak_bytes"],
            "gpu_bytes": last["gpu_bytes"],
        }
    return results


class _Process:
    """A contestant that waits for its turn."""

    def __init__(self, spec: dict[str, Any]):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed at its end
        command = [sys.executable, "-m", "hf_detr.cli._timing", json.dumps(spec)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def measured(self) -> dict[str, Any] | None:
        """One turn; None where the process has ended."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def reason(self) -> str:
        """Why it ended: the last line that it wrote to stderr."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        self.end()
        return printable(f"ended with code {code}: {lines[-1] if lines else 'no message'}")[:300]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what it never read
                pipe.close()
        self.errors.close()
