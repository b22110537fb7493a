"""What a case is, and how it is run: compared first, then timed in turns, then weighed in processes of its own.

A case is a function that gets a `Bench` and returns a `Comparison` or `Counts`. The functions are in cases_*.py, each
with its targets beside it.
"""

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from environment import stamp
from measure import PeakMemory, alternate, count_flop, ratios, summarise, time_once

if TYPE_CHECKING:
    from contestants import Original

# Outputs in float32 are equal up to this, whoever computes them.
TOLERANCE = 1e-4


class Unavailable(Exception):
    """A peer is not here; the message says what it takes."""


@dataclass(frozen=True)
class Ready:
    """A contestant on its marks.

    Attributes:
        work: what is timed.
        answer: what the work computes, by name; run once, before. Only names that two contestants share are compared.
    """

    work: Callable[[], object]
    answer: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contestant:
    """`prepare` makes it ready, or raises `Unavailable`; its answers may differ from the first one's by `tolerance`."""

    name: str
    prepare: Callable[[], Ready]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """Contestants, of whom the first is ours, and how long to look at them.

    Attributes:
        budget_s: seconds of timing after which no further round begins.
        weigh: peak memory too, each contestant in a process of its own.
        apart: one long call each, timed where it is weighed.
        floor_dtype: the work is matrix products and convolutions of this type, whose arithmetic is a floor.
        images: of one call, where images per second are of interest.
        warmups: calls of each contestant before the clock runs.
        notes: what a reader of the numbers must know.
    """

    contestants: list[Contestant]
    budget_s: float = 40
    least_rounds: int = 3
    most_rounds: int = 30
    weigh: bool = False
    apart: bool = False
    floor_dtype: str | None = None
    images: int | None = None
    warmups: int = 1
    notes: str = ""


@dataclass(frozen=True)
class Counts:
    """Things counted instead of timed: contestant -> name -> number. A limit holds for the first contestant."""

    counts: dict[str, dict[str, int]]
    limits: dict[str, int] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        targets: device type -> contestant -> the least ratio of its time to ours.
        memory_targets: the same, the most that ours may take of the contestant's peak memory.
        devices: where it can run; elsewhere it is skipped with `reason`.
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
    """What the cases share: the device, the sizes, the checkpoint and the peers.

    Attributes:
        quick: tiny inputs and few repeats, to see that everything runs.
        checkpoint: folder of the weights everybody loads.
        original_folder: the original's checkout, if it was given.
        gemm_gflop_s: how fast this machine multiplies matrices, by type of number.
    """

    device: torch.device
    quick: bool
    checkpoint: Path
    original_folder: Path | None = None
    gemm_gflop_s: Mapping[str, float] = field(default_factory=dict)
    _original: "Original | None" = None

    def pick(self, *, quick: Any, cpu: Any, cuda: Any) -> Any:
        """The size of something here."""
        return quick if self.quick else {"cpu": cpu, "cuda": cuda}[self.device.type]

    @property
    def original(self) -> "Original":
        if self.original_folder is None:
            raise Unavailable("its checkout was not given (--original DIR)")
        if self._original is None:
            from contestants import Original

            self._original = Original(self.original_folder)
        return self._original


def run_case(case: Case, bench: Bench) -> dict[str, Any]:
    """Everything known of one case: `status` is measured, counted, failed, skipped or error.

    Outputs that differ make it failed, and nothing of it is timed.
    """
    result: dict[str, Any] = {"title": case.title, "stamp": stamp()}
    if bench.device.type not in case.devices:
        return {**result, "status": "skipped", "reason": case.reason or f"not a case for {bench.device.type}"}
    try:
        made = case.make(bench)
        if isinstance(made, Counts):
            return {**result, "status": "counted", **dataclasses.asdict(made)}
        return {**result, **_compare_and_time(case, made, bench)}
    except Exception as error:  # a case must not take the others with it; run.py ends with an error all the same
        return {**result, "status": "error", "reason": repr(error), "traceback": traceback.format_exc()}
    finally:
        gc.collect()


def _compare_and_time(case: Case, made: Comparison, bench: Bench) -> dict[str, Any]:
    ready: dict[str, Ready] = {}
    left_out: dict[str, str] = {}
    for contestant in made.contestants:
        try:
            ready[contestant.name] = contestant.prepare()
        except Unavailable as error:
            left_out[contestant.name] = str(error)
    first = made.contestants[0].name
    result: dict[str, Any] = {"first": first, "left_out": left_out, "notes": made.notes}

    result["differences"] = _compare(made, ready)
    wrong = [
        f"{name}: {found['largest']:.3g} in {found['in']}, allowed {found['allowed']:g}"
        for name, found in result["differences"].items()
        if not found["largest"] <= found["allowed"]  # NaN is no agreement
    ]
    if wrong:
        return {**result, "status": "failed", "reason": "outputs differ from ours by " + "; ".join(wrong)}

    works = {name: one.work for name, one in ready.items()}
    peaks: dict[str, float | None] = {}
    gflop = None
    if made.apart and not bench.quick:
        apart = {name: _weigh_apart(case.name, name, bench) for name in works}
        seconds = {name: [found["seconds"]] for name, found in apart.items()}
        peaks = {name: found["peak_mib"] for name, found in apart.items()}
    else:
        for _ in range(1 if bench.quick else made.warmups):
            for work in works.values():
                work()
        limits = (0, 2, 2) if bench.quick else (made.budget_s, made.least_rounds, made.most_rounds)
        seconds = alternate(works, bench.device, *limits)
        gflop = count_flop(works[first]) / 1e9 if made.floor_dtype else None
    del ready, works
    gc.collect()
    if made.weigh and not bench.quick:  # each takes seconds to start
        peaks = {name: _weigh_apart(case.name, name, bench)["peak_mib"] for name in seconds}

    targets = case.targets.get(bench.device.type, {})
    result["contestants"] = {name: {"seconds": summarise(samples)} for name, samples in seconds.items()}
    result["ratios"] = {
        name: {**ratios(seconds[first], samples), "target": targets.get(name)}
        for name, samples in seconds.items()
        if name != first
    }
    if gflop:
        floor_s = gflop / bench.gemm_gflop_s[made.floor_dtype]
        ours_s = result["contestants"][first]["seconds"]["median"]
        result["floor"] = {"gflop": gflop, "dtype": made.floor_dtype, "seconds": floor_s}
        result["floor"]["ours_over_floor"] = ours_s / floor_s
    if made.images:
        result["images"] = made.images
    memory_targets = case.memory_targets.get(bench.device.type, {})
    for name, peak in peaks.items():
        result["contestants"][name]["peak_mib"] = peak
        if name != first and peak and peaks[first] is not None:
            memory = {"ours_of_theirs": peaks[first] / peak, "target": memory_targets.get(name)}
            result["ratios"][name]["memory"] = memory
    return {**result, "status": "measured"}


def _compare(made: Comparison, ready: dict[str, Ready]) -> dict[str, dict[str, float | str]]:
    """Contestant -> the `largest` absolute difference from ours, `in` what, and what is `allowed`. One answer beside
    ours is held at a time."""
    first = made.contestants[0].name
    with exact_arithmetic():
        reference = ready[first].answer()
        differences = {}
        for contestant in made.contestants[1:]:
            if contestant.name not in ready:
                continue
            answer = ready[contestant.name].answer()
            shared = [name for name in answer if name in reference]
            if not shared:
                raise ValueError(f"{contestant.name} answers {sorted(answer)}, {first} {sorted(reference)}.")
            gaps = {name: _largest_gap(reference[name], answer[name]) for name in shared}
            # a NaN is greater than any
            worst = max(gaps, key=lambda name: (gaps[name] != gaps[name], gaps[name]))
            found = {"largest": gaps[worst], "in": worst, "allowed": contestant.tolerance}
            differences[contestant.name] = found
    return differences


def _largest_gap(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"answers have the shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.detach().double() - b.detach().double().to(a.device)).abs().max().item() if a.numel() else 0.0


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """PyTorch lets convolutions on a GPU keep ten bits of float32 numbers. Times are taken with that, as users have it,
    comparisons without."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _weigh_apart(case: str, contestant: str, bench: Bench) -> dict[str, float | None]:
    """What `weigh` finds of one contestant in a process that has seen no other."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--weigh", case, contestant]
    command += ["--device", str(bench.device), "--threads", str(torch.get_num_threads())]
    command += ["--checkpoint", str(bench.checkpoint)]
    if bench.original_folder:
        command += ["--original", str(bench.original_folder)]
    if bench.quick:
        command += ["--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"weighing {contestant} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def weigh(case: Case, contestant_name: str, bench: Bench) -> dict[str, float | None]:
    """What `_weigh_apart` runs: `peak_mib`, memory above that of imports and inputs at the peak of two calls, weights
    included; and `seconds` of the last call. Of a case that is timed `apart` there is one call, after an answer."""
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
