"""How time and memory grow with the batch, the image's side, the objects of an image and the queries.

    python benchmarks/growth.py                 # about five minutes on two cores
    python benchmarks/growth.py --axes objects queries --works loss

Writes growth-<device>.json and .png into benchmarks/results. The slope in log-log between the two largest points says
how a quantity grows at the end: 1 is in proportion, 2 with the square. Beside the slope of the time stands that of the
arithmetic, which time must not outgrow: operations of matrix products, convolutions and attention; of the loss alone,
the numbers it has to look at, which are each query's classes and the cost of each object.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
WORKS = ("inference", "training", "loss")
BASE = {"batch": 1, "side": 384, "objects": 7, "queries": 100}
AXES = {
    "batch": (1, 2, 4, 8),
    "side": (256, 384, 512, 768, 1024),
    "objects": (1, 5, 10, 20, 40, 80),
    "queries": (25, 50, 100, 200, 400),
}
LOSS_BASE = {"batch": 8}  # alone, one image's loss is too short to tell its growth from the overhead
QUICK_AXES = {"batch": (1, 2), "side": (64, 96), "objects": (1, 4), "queries": (20, 20)}
# what the work does not depend on is not measured again
SKIPPED = {("inference", "objects"), ("loss", "side")}


def slope(sizes: list[float], values: list[float]) -> float:
    """Of the line between the two last points in log-log; NaN where a value is 0 or the sizes are equal."""
    if len(sizes) < 2 or sizes[-1] == sizes[-2] or min(values[-2:]) <= 0:
        return float("nan")
    return float(np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--package", default="ours", choices=("ours", "stock"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two tiny points an axis: a smoke test")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="default: beside the results")
    args = parser.parse_args()
    if args.quick and args.results is None:
        parser.error("--quick writes nothing that belongs into benchmarks/results: give --results DIR.")
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    from environment import describe, file_name, stamp
    from hf_detr.cli._process_memory import keep_freed_memory
    from report import save

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_freed_memory()  # as training and the commands do
    results = {"program": "growth", "environment": describe(device, args.quick), "stamp": stamp()}
    results |= {"package": args.package, "growth": []}
    path = (args.results or RESULTS) / f"growth-{args.package}-{file_name(device)}"
    print(f"{'work':<11}{'against':<9}{'size':>6}{'seconds':>11}{'MiB':>8}{'GFLOP':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for axis in args.axes:
            for work in args.works:
                if (work, axis) in SKIPPED:
                    continue
                line = _measure_axis(Path(folder), device, args, work, axis)
                results["growth"].append(line)
                slopes = ", ".join(f"{what} {value:.2f}" for what, value in line["slopes"].items())
                print(f"{work:<11}{axis:<9}slopes at the end: {slopes}", flush=True)
                save(path, results)
    plot = args.plot or path.with_suffix(".png")
    _plot(results, plot)
    print(f"\nwritten: {path}, {plot}")
    return 0


def _measure_axis(folder: Path, device, args: argparse.Namespace, work_name: str, axis: str) -> dict:
    from inputs import NUM_CLASSES
    from measure import PeakMemory, count_flop, summarise, time_once
    from works import make_works

    sizes = QUICK_AXES[axis] if args.quick else AXES[axis]
    points = []
    for size in sizes:
        at = {**BASE, **(LOSS_BASE if work_name == "loss" else {}), **({"side": 64} if args.quick else {}), axis: size}
        side = at.pop("side")
        peak = PeakMemory(device)
        works = make_works(folder, device, args.package, args.quick, False, [work_name], height=side, width=side, **at)
        work = works[work_name]
        work()
        peak.restart()
        seconds = summarise([time_once(work, device) for _ in range(args.repeats)])
        mib = peak.mib()
        point = {"size": size, "seconds": seconds, "peak_mib": mib, "flop": count_flop(work)}
        if work_name == "loss":
            point["flop"] = 6 * at["batch"] * at["queries"] * (NUM_CLASSES + 1 + at["objects"])
        del work, works
        points.append(point)
        memory = "-" if mib is None else f"{mib:,.0f}"
        print(
            f"{work_name:<11}{axis:<9}{size:>6}{seconds['median']:>11.4f}{memory:>8}{point['flop'] / 1e9:>10,.1f}",
            flush=True,
        )
    columns = {
        "time": [point["seconds"]["median"] for point in points],
        "memory": [point["peak_mib"] or 0 for point in points],
        "arithmetic": [point["flop"] for point in points],
    }
    slopes = {what: slope(list(sizes), values) for what, values in columns.items()}
    return {"work": work_name, "against": axis, "points": points, "slopes": slopes}


def _plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    axes_measured = list(dict.fromkeys(line["against"] for line in results["growth"]))
    figure, panels = plt.subplots(
        2, len(axes_measured), figsize=(4 * len(axes_measured), 7), squeeze=False, layout="constrained"
    )
    for column, axis in enumerate(axes_measured):
        for line in (line for line in results["growth"] if line["against"] == axis):
            sizes = [point["size"] for point in line["points"]]
            for row, (what, values) in enumerate(
                (
                    ("time", [point["seconds"]["median"] for point in line["points"]]),
                    ("memory", [point["peak_mib"] for point in line["points"]]),
                )
            ):
                if None in values:
                    continue
                label = f"{line['work']}, slope {line['slopes'][what]:.2f}"
                if what == "time" and np.isfinite(line["slopes"]["arithmetic"]):
                    label += f" (arithmetic {line['slopes']['arithmetic']:.2f})"
                panels[row, column].loglog(sizes, values, marker="o", label=label)
        for row, unit in enumerate(("seconds", "peak MiB")):
            panel = panels[row, column]
            panel.set_xlabel({"side": "side of the image, pixels", "objects": "objects an image"}.get(axis, axis))
            panel.set_ylabel(unit)
            panel.set_xticks(sizes, labels=[str(size) for size in sizes])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(True, which="both", alpha=0.3)
            panel.legend(fontsize=8)
    figure.suptitle(f"{results['package']}, ResNet-50, float32: {results['environment']['device_name']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
