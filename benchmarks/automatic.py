"""`hf-detr train DATA` as it picks its settings, against the paper's settings, for the same time from the same start.

    python benchmarks/automatic.py --bccd ../shared/data/bccd --time-limit 5m

Both trainings of a data set run at once, with one thread on a core each. The paper's settings: its losses,
augmentation, rates, schedule, clip, and four images a step; number of queries, image size and dropout are picked for
both. AP is that of the split `test`, from metrics.json. Results are saved after each data set; one that is there is not
run again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import environment

SMALL = "--d-model 128 --ffn-dim 256 --encoder-layers 2 --decoder-layers 3"
# name -> what it starts from
STARTS = {
    "digits": f"--backbone test_resnet {SMALL} --output-stride 16",
    "shapes": "--model tiny",
    "bccd": "--model imagenet --on-bad-box drop",
}
CONTESTANTS = {
    "automatic": "",
    "paper": "--recipe paper --augment paper --batch-size 4 --learning-rate 1e-4 --backbone-learning-rate 1e-5"
    " --lr-drop-at 0.667 --clip 0.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", default="5m", help="of each training, as of hf-detr train")
    parser.add_argument("--bccd", type=Path, help="the folder of these photographs; left out without")
    parser.add_argument("--only", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--output", type=Path, default=environment.REPOSITORY / "benchmarks/results/automatic_cpu.json")
    args = parser.parse_args()
    recorded = json.loads(args.output.read_text()) if args.output.exists() else {"sets": {}}
    if recorded["sets"] and recorded["time_limit"] != args.time_limit:
        parser.error(f"{args.output} holds trainings of {recorded['time_limit']}; name another file")
    torch.set_num_threads(1)  # as in the trainings, for what is recorded
    recorded |= {"time_limit": args.time_limit, "environment": environment.describe(torch.device("cpu"), quick=True)}
    for name in args.only:
        if name not in recorded["sets"] and (name != "bccd" or args.bccd):
            with tempfile.TemporaryDirectory() as folder:
                recorded["sets"][name] = both(name, args.bccd, args.time_limit, Path(folder))
            args.output.write_text(json.dumps(recorded, indent=1) + "\n")
    print(table(recorded["sets"]))


def both(name: str, bccd: Path | None, time_limit: str, folder: Path) -> dict[str, dict]:
    """The results of both contestants on one data set, whose trainings run at once."""
    data = bccd if name == "bccd" else generate(name, folder / "data")
    trainings = {}
    for core, (contestant, options) in enumerate(CONTESTANTS.items()):
        command = [sys.executable, "-m", "hf_detr.cli.main", "train", str(data), "--time-limit", time_limit]
        command += ["--output", str(folder / contestant), "--device", "cpu", "--workers", "0", "--no-check"]
        command += [*STARTS[name].split(), *options.split()]
        if shutil.which("taskset"):
            cores = sorted(os.sched_getaffinity(0))
            command = ["taskset", "-c", str(cores[core % len(cores)]), *command]
        trainings[contestant] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for contestant, training in trainings.items():
        if training.wait():
            raise SystemExit(f"{name}, {contestant}: hf-detr train ended with {training.returncode}")
    return {contestant: result(folder / contestant) for contestant in CONTESTANTS}


def generate(name: str, folder: Path) -> Path:
    """The scenes of benchmarks/convergence, with a split to choose the best weights by."""
    from datasets import DatasetDict

    from hf_detr.data.synthetic.digits import digit_scenes
    from hf_detr.data.synthetic.shapes import shape_scenes

    scenes, count = {"digits": (digit_scenes, 6_000), "shapes": (shape_scenes, 2_000)}[name]
    splits = {"train": (count, 0, "train"), "validation": (100, 2, "train"), "test": (200, 1, "test")}
    made = {split: scenes(n, 96, seed=seed, split=source) for split, (n, seed, source) in splits.items()}
    DatasetDict(made).save_to_disk(folder)
    return folder


def result(run: Path) -> dict:
    """What a run folder says of its training."""
    metrics = json.loads((run / "metrics.json").read_text())
    numbers, settings = metrics["metrics"], metrics["settings"]
    images = metrics["steps"] * settings["batch_size"]
    kept = ("recipe", "augment", "learning_rate", "backbone_learning_rate", "batch_size", "clip", "image_size")
    return {"map": numbers["map"], "map_50": numbers["map_50"], "steps": metrics["steps"], "images": images,
            "settings": {name: settings[name] for name in kept}}  # fmt: skip


def table(sets: dict[str, dict[str, dict]]) -> str:
    """In Markdown, a row a training."""
    lines = ["| set | settings | steps | images | AP | AP50 |", "| --- | --- | --- | --- | --- | --- |"]
    for name, runs in sets.items():
        for contestant, run in runs.items():
            numbers = f"{run['steps']:,} | {run['images']:,} | {100 * run['map']:.1f} | {100 * run['map_50']:.1f}"
            lines.append(f"| {name} | {contestant} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
