"""Time to AP: transformers' DETR and this package from the same weights on the same batches.

    python benchmarks/time_to_ap.py digits --minutes 10 --seeds 3 --jobs 2
    python benchmarks/time_to_ap.py bccd --data ../shared/data/bccd --start runs/start --minutes 15
    python benchmarks/time_to_ap.py digits --only denoising groups ema       # one help at a time

Every run is a process of its own with one thread, `--jobs` of them at once (no more than there are idle cores; one on a
GPU). Results are merged into benchmarks/results/time_to_ap_<case>_<device>.json after each run, and plotted beside it.
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from convergence.cases import prepare  # noqa: E402
from convergence.contestants import CONTESTANTS, settings_of  # noqa: E402

MAIN = ("stock-example", "stock", "stock-auxiliary", "paper", "fast")


def main() -> int:
    args = parse()
    if args.run:
        return one_run(args)
    results = args.output or HERE / "results" / f"time_to_ap_{args.case}_{args.device}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    told = json.loads(results.read_text()) if results.exists() else {"runs": {}}
    told.update(case=args.case, minutes=args.minutes, environment=environment(args))
    names = args.only or MAIN
    todo = [(name, seed) for seed in range(args.seeds) for name in names]
    if args.missing:
        todo = [(name, seed) for name, seed in todo if str(seed) not in told["runs"].get(name, {})]
    places: Queue[int] = Queue()
    for place in range(args.jobs):
        places.put(place)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "case.pt"
        prepare(args.case, args.data, args.start, prepared)
        run_all(args, todo, places, prepared, told, results)
    from convergence.summary import plot, table

    main = [name for name in MAIN if name in told["runs"]]
    helps = [name for name in told["runs"] if name not in main]
    print(table(told, [*main, *helps]))
    plot(told, results.with_suffix(".png"), main or None)
    print(f"{results} and {results.with_suffix('.png').name}")
    return 0


def run_all(args: argparse.Namespace, todo: list, places: Queue, prepared: Path, told: dict, results: Path) -> None:
    one_at_a_time = Lock()

    def work(job: tuple[str, int]) -> None:
        name, seed = job
        place = places.get()
        try:
            run = start_run(args, name, seed, place, prepared)
        finally:
            places.put(place)
        with one_at_a_time:
            told["runs"].setdefault(name, {})[str(seed)] = run
            results.write_text(json.dumps(told, indent=1) + "\n")
        last = run["curve"][-1]
        print(f"{name:24} seed {seed}: AP {100 * last['map']:5.1f}, AP50 {100 * last['map_50']:5.1f}, "
              f"{run['ms_per_step']:6.0f} ms a step, {run['images']:,} images", flush=True)  # fmt: skip

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, todo))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("digits", "shapes", "bccd"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONTESTANTS, help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes a setting of all of them")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each run")
    parser.add_argument("--points", type=int, default=8, help="evaluations of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--missing", action="store_true", help="only runs that the results do not have yet")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="the folder of the photographs, for bccd")
    parser.add_argument("--start", type=Path, help="the model to start from, for bccd")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case == "bccd" and not args.run and (args.data is None or args.start is None):
        parser.error("bccd needs --data and --start (see examples/start_from_efficientnet.py)")
    return args


def start_run(args: argparse.Namespace, name: str, seed: int, place: int, prepared: Path) -> dict:
    """One process, on one core where there are cores to choose."""
    command = [sys.executable, __file__, args.case, "--run", name, str(seed), "--minutes", str(args.minutes)]
    command += ["--points", str(args.points), "--device", args.device, "--prepared", str(prepared)]
    if args.start:
        command += ["--start", str(args.start)]
    if args.set:
        command += ["--set", *args.set]
    if args.device == "cpu" and shutil.which("taskset") and args.jobs > 1:
        command = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[place]), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_run(args: argparse.Namespace) -> int:
    from convergence.one_run import train

    name, seed = args.run
    changes = {key: json.loads(value) for key, value in (one.split("=", 1) for one in args.set)}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        if args.start:
            shutil.copytree(args.start, start)
        settings = settings_of(name, changes)
        run = train(args.prepared, start, settings, int(seed), args.minutes, args.points, args.device)
    print(json.dumps(run))
    return 0


def environment(args: argparse.Namespace) -> dict:
    import torch
    import transformers

    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU ({platform.machine()}), 1 thread a run"
    return {"device": device, "cores": os.cpu_count(), "jobs": args.jobs, "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version()}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
