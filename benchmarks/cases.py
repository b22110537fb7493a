"""What a case is, and how one is run: compared first, then timed in turns, then weighed in processes of its own.

The cases are in cases_*.py, one file an area: a function that gets a `Bench` and returns a `Comparison` or `Counts`,
and a `Case` with its targets.
"""

import dataclasses
import gc
import importlib
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from environment import stamp
from measure import PeakMemory, alternate, count_flop, exact_arithmetic, ratios, summarise, time_once

TOLERANCE = 1e-4  # float32 outputs differ by less, whoever computes them
AREAS = ("inference", "training", "masks", "loss", "processor", "evaluation")


class Unavailable(Exception):
    """A peer is not installed or not given; the message says what it takes."""


@dataclass(frozen=True)
class Ready:
    """A contestant with everything loaded: `work` is timed; `answer` is what it computes, by name, and is called once,
    before. Only names that two contestants share are compared."""

    work: Callable[[], object]
    answer: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contestant:
    """`prepare` loads it, or raises `Unavailable`; its answers may differ from the first one's by `tolerance`."""

    name: str
    prepare: Callable[[], Ready]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """Contestants, of which the first is this package, and how they are measured.

    Attributes:
        budget_s: seconds of timing after which no further round begins.
        weigh: peak memory too, each contestant in a process of its own.
        apart: so many calls of each, every one timed and weighed in a process of its own.
        floor_dtype: the work is matrix products and convolutions of this type, whose arithmetic is a floor.
        images: of one call.
        warmups: calls of each contestant before the clock runs.
        notes: what a reader of the numbers must know.
    """

    contestants: list[Contestant]
    budget_s: float = 40
    least_rounds: int = 3
    most_rounds: int = 30
    weigh: bool = False
    apart: int = 0
    floor_dtype: str | None = None
    images: int | None = None
    warmups: int = 1
    notes: str = ""


@dataclass(frozen=True)
class Counts:
    """Counted instead of timed: contestant -> what -> number. A limit holds for the first contestant."""

    counts: dict[str, dict[str, int]]
    limits: dict[str, int] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        targets: device type -> contestant -> the least ratio of its time to ours.
        memory_targets: the same, the most that ours may take of the contestant's peak memory.
        devices: where it runs; elsewhere it is skipped with `reason`.
    """

    name: str
    title: str
    make: Callable[["Bench"], Comparison | Counts]
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    memory_targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    reason: str = ""


@dataclass
class Bench:
    """What the cases share.

    Attributes:
        quick: tiny inputs and few repeats, to see that everything runs.
        checkpoint: folder of the weights that everyone loads.
        original_folder: the original's checkout, if it was given.
        gemm_gflop_s: how fast this machine multiplies matrices, by dtype.
    """

    device: torch.device
    quick: bool
    checkpoint: Path
    original_folder: Path | None = None
    gemm_gflop_s: Mapping[str, float] = field(default_factory=dict)

    def pick(self, *, quick: Any, cpu: Any, cuda: Any) -> Any:
        """The size of something here."""
        return quick if self.quick else {"cpu": cpu, "cuda": cuda}[self.device.type]

    @cached_property
    def original(self):
        """The `contestants.Original` of the checkout."""
        from contestants import Original

        if self.original_folder is None:
            raise Unavailable("its checkout was not given (--original DIR)")
        return Original(self.original_folder)


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [case for area in AREAS for case in importlib.import_module(f"cases_{area}").CASES]


def run_case(case: Case, bench: Bench) -> dict[str, Any]:
    """Everything known of one case; its `status` is measured, counted, failed, skipped or error.

    Outputs that differ make it failed, and nothing of it is timed.
    """
    result: dict[str, Any] = {"title": case.title, "stamp": stamp()}
    if bench.device.type not in case.devices:
        return {**result, "status": "skipped", "reason": case.reason}
    try:
        made = case.make(bench)
        if isinstance(made, Counts):
            return {**result, "status": "counted", **dataclasses.asdict(made)}
        return {**result, **_compare_and_time(case, made, bench)}
    except Exception as error:  # the other cases still run, and run.py's exit code tells
        return {**result, "status": "error", "reason": repr(error), "traceback": traceback.format_exc()}
    finally:
        gc.collect()


def _compare_and_time(case: Case, made: Comparison, bench: Bench) -> dict[str, Any]:
    ready: dict[str, Ready] = {}
    result: dict[str, Any] = {"first": made.contestants[0].name, "left_out": {}, "notes": made.notes}
    first = result["first"]
    for contestant in made.contestants:
        try:
            ready[contestant.name] = contestant.prepare()
        except Unavailable as error:
            result["left_out"][contestant.name] = str(error)
    result["differences"] = _differences(made, ready)
    wrong = [
        f"{name}: {found['largest']:.3g} in {found['in']}, allowed {found['allowed']:g}"
        for name, found in result["differences"].items()
        if not found["largest"] <= found["allowed"]  # NaN is no agreement
    ]
    if wrong:
        return {**result, "status": "failed", "reason": "outputs differ from ours by " + "; ".join(wrong)}

    works = {name: one.work for name, one in ready.items()}
    peaks: dict[str, float | None] = {}
    if made.apart and not bench.quick:
        names, seconds = list(works), {name: [] for name in works}
        for turn in range(made.apart):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found = _weigh_apart(case.name, name, bench)
                seconds[name].append(found["seconds"])
                peaks[name] = found["peak_mib"]
    else:
        for _ in range(1 if bench.quick else made.warmups):
            for work in works.values():
                work()
        limits = (0, 2, 2) if bench.quick else (made.budget_s, made.least_rounds, made.most_rounds)
        seconds = alternate(works, bench.device, *limits)
    gflop = count_flop(works[first]) / 1e9 if made.floor_dtype else None
    del ready, works
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()  # other processes weigh
    if made.weigh and not bench.quick:
        peaks = {name: _weigh_apart(case.name, name, bench)["peak_mib"] for name in seconds}

    result["contestants"] = {name: {"seconds": summarise(samples)} for name, samples in seconds.items()}
    targets, memory_targets = (of.get(bench.device.type, {}) for of in (case.targets, case.memory_targets))
    result["ratios"] = {
        name: {**ratios(seconds[first], samples), "target": targets.get(name)}
        for name, samples in seconds.items()
        if name != first
    }
    for name, peak in peaks.items():
        result["contestants"][name]["peak_mib"] = peak
        if name != first and peak and peaks[first] is not None:
            memory = {"ours_of_theirs": peaks[first] / peak, "target": memory_targets.get(name)}
            result["ratios"][name]["memory"] = memory
    if gflop:
        floor_s = gflop / bench.gemm_gflop_s[made.floor_dtype]
        over = result["contestants"][first]["seconds"]["median"] / floor_s
        result["floor"] = {"gflop": gflop, "dtype": made.floor_dtype, "seconds": floor_s, "ours_over_floor": over}
    return {**result, **({"images": made.images} if made.images else {}), "status": "measured"}


@exact_arithmetic()
def _differences(made: Comparison, ready: dict[str, Ready]) -> dict[str, dict[str, float | str]]:
    """Contestant -> the `largest` absolute difference from ours, `in` what, and what is `allowed`. One answer beside
    ours is held at a time."""
    first = made.contestants[0].name
    reference = ready[first].answer()
    differences = {}
    for contestant in made.contestants[1:]:
        if contestant.name not in ready:
            continue
        answer = ready[contestant.name].answer()
        gaps = {name: _largest_gap(reference[name], answer[name]) for name in answer if name in reference}
        if not gaps:
            raise ValueError(f"{contestant.name} answers {sorted(answer)}, {first} {sorted(reference)}.")
        worst = max(gaps, key=lambda name: (gaps[name] != gaps[name], gaps[name]))  # NaN above any number
        differences[contestant.name] = {"largest": gaps[worst], "in": worst, "allowed": contestant.tolerance}
    return differences


def _largest_gap(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"answers have the shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.detach().double() - b.detach().double().to(a.device)).abs().max().item() if a.numel() else 0.0


def _weigh_apart(case: str, contestant: str, bench: Bench) -> dict[str, float | None]:
    """What `weigh` finds of one contestant in a process that has seen no other."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--weigh", case, contestant]
    command += ["--device", str(bench.device), "--threads", str(torch.get_num_threads())]
    command += ["--checkpoint", str(bench.checkpoint)]
    command += ["--original", str(bench.original_folder)] if bench.original_folder else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"weighing {contestant} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def weigh(case: Case, contestant_name: str, bench: Bench) -> dict[str, float | None]:
    """`peak_mib`, memory above that of imports and inputs at the peak of two calls, weights included; and `seconds` of
    the last call. Of a case that is timed `apart` there is one call, after an answer."""
    made = case.make(bench)
    (contestant,) = (one for one in made.contestants if one.name == contestant_name)
    peak = PeakMemory(bench.device)
    ready = contestant.prepare()
    if made.apart:
        ready.answer()  # imports and first calls
    peak.restart()  # loading takes each weight twice
    for _ in range(1 if made.apart else 2):
        seconds = time_once(ready.work, bench.device)
    return {"peak_mib": peak.mib(), "seconds": seconds}
