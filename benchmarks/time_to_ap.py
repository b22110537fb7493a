"""Time to AP: transformers' DETR and this package from the same weights on the same batches.

    python benchmarks/time_to_ap.py digits --minutes 10 --seeds 3 --jobs 2
    python benchmarks/time_to_ap.py bccd --data ../shared/data/bccd --start runs/start --minutes 15
    python benchmarks/time_to_ap.py digits --only denoising groups average   # one training-only part at a time
    python benchmarks/time_to_ap.py digits --minutes 120 --only fast --threads 2 --save runs/of --output runs/of.json
    python benchmarks/time_to_ap.py digits --only fast-teacher-by-query --teacher runs/of/fast-0

Every run is a process of its own with one thread (`--threads`: a teacher is there sooner with more), `--jobs` of them
at once (no more than there are cores; one on a GPU). Results are merged into
benchmarks/results/time_to_ap_<case>_<device>.json after each run, and plotted beside it; runs that are there with the
same settings and clock are not run again, so that a sweep that was stopped goes on.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock

from convergence.cases import prepare
from convergence.contestants import CONTESTANTS, DEFAULTS, settings_of

HERE = Path(__file__).resolve().parent
MAIN = ("stock-example", "stock", "stock-auxiliary", "paper", "fast")


def main() -> int:
    args = parse()
    if args.run:
        return one_run(args)
    results = args.output or HERE / "results" / f"time_to_ap_{args.case}_{args.device}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    recorded = json.loads(results.read_text()) if results.exists() else {"runs": {}}
    if recorded["runs"] and recorded["minutes"] != args.minutes:
        print(f"{results} holds runs of {recorded['minutes']:g} minutes; move it, or name another file (--output).")
        return 2
    recorded.update(case=args.case, minutes=args.minutes, environment=environment(args))
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "case.pt"
        prepare(args.case, args.data, args.start, prepared)
        run_all(args, prepared, recorded, results)
    from convergence.summary import plot, table

    main = [name for name in MAIN if name in recorded["runs"]]
    print(table(recorded, [*main, *(name for name in recorded["runs"] if name not in main)]))
    plot(recorded, results.with_suffix(".png"), main or None)
    print(f"{results} and {results.with_suffix('.png').name}")
    return 0


def run_all(args: argparse.Namespace, prepared: Path, recorded: dict, results: Path) -> None:
    """`args.jobs` runs at once, each on a core of its own; every result is saved when it is there."""
    one_at_a_time, cores = Lock(), Queue()
    for core in range(args.jobs):
        cores.put(core)

    def work(job: tuple[int, str]) -> None:
        seed, name = job
        earlier = recorded["runs"].get(name, {}).get(str(seed))
        # a setting that came later had its default
        if earlier is not None and {**DEFAULTS, **earlier["settings"]} == settings_of(name):
            return
        core = cores.get()
        try:
            run = start_run(args, name, seed, core, prepared)
        finally:
            cores.put(core)
        with one_at_a_time:  # another sweep may have added to the file
            if results.exists():
                recorded["runs"] = json.loads(results.read_text())["runs"]
            recorded["runs"].setdefault(name, {})[str(seed)] = run
            results.write_text(json.dumps(recorded, indent=1) + "\n")
        last = run["curve"][-1]
        print(f"{name:24} seed {seed}: AP {100 * last['map']:5.1f}, AP50 {100 * last['map_50']:5.1f}, "
              f"{run['ms_per_step']:6.0f} ms a step, {run['images']:,} images", flush=True)  # fmt: skip

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, [(seed, name) for seed in range(args.seeds) for name in args.only or MAIN]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("digits", "shapes", "bccd"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONTESTANTS, help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of each run")
    parser.add_argument("--points", type=int, default=15, help="evaluations of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="of each run; the clock counts what all of them compute")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="the folder of the photographs, for bccd")
    parser.add_argument("--start", type=Path, help="the model to start from, for bccd")
    parser.add_argument("--teacher", type=Path, help="a trained detector, for contestants with a teacher")
    parser.add_argument("--save", type=Path, help="a folder for what each run ends with: NAME-SEED, to be a teacher")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    needs_teacher = [name for name in args.only or MAIN if settings_of(name)["teacher"]]
    if needs_teacher and args.teacher is None and not args.run:
        parser.error(f"{', '.join(needs_teacher)}: name a --teacher; a run with --save makes one")
    if args.case == "bccd" and not args.run and (args.data is None or args.start is None):
        parser.error("bccd needs --data and --start (see examples/start_from_efficientnet.py)")
    return args


def start_run(args: argparse.Namespace, name: str, seed: int, core: int, prepared: Path) -> dict:
    """One process, on one core where there are cores to choose."""
    command = [sys.executable, __file__, args.case, "--run", name, str(seed), "--minutes", str(args.minutes)]
    command += ["--points", str(args.points), "--device", args.device, "--prepared", str(prepared)]
    for option in ("start", "teacher", "save"):
        value = getattr(args, option)
        command += [f"--{option}", str(value)] if value else []
    if args.device == "cpu" and shutil.which("taskset") and args.jobs > 1:
        command = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[core]), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_run(args: argparse.Namespace) -> int:
    """What `start_run` starts."""
    from convergence.one_run import train

    name, seed = args.run
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        if args.start:
            shutil.copytree(args.start, start)
        save = args.save and args.save / f"{name}-{seed}"
        options = {"teacher": args.teacher, "save": save}
        settings = settings_of(name)
        run = train(args.prepared, start, settings, int(seed), args.minutes, args.points, args.device, **options)
    print(json.dumps(run))
    return 0


def environment(args: argparse.Namespace) -> dict:
    import torch
    import transformers

    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''} a run"
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU ({platform.machine()}), {threads}"
    return {"device": device, "cores": os.cpu_count(), "jobs": args.jobs, "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version()}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
