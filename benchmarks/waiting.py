"""How long the model stands still for data in `hf-detr train` and `hf-detr predict`, as their summaries say.

    python benchmarks/waiting.py ../shared/data/bccd       # a folder that hf-detr train reads; about two minutes

An epoch of a fresh DETR with a ResNet-18 on pictures of 320 pixels, then its predictions on all of the folder's
pictures, drawn as well. A larger network or larger pictures leave more time for the data. Writes
benchmarks/results/waiting_<device>.json.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from environment import describe, stamp
from report import save

RESULTS = Path(__file__).resolve().parent / "results"
_TRAINING = {"backbone": "resnet18", "image-size": 320, "epochs": 1, "batch-size": 4, "on-bad-box": "drop"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set on this machine")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = {"program": "waiting", "environment": describe(device, quick=False), "stamp": stamp(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = [
            "train",
            str(args.data),
            *(f"--{name}={value}" for name, value in _TRAINING.items()),
            f"--output={run}",
        ]
        predict = ["predict", str(run), str(args.data), "--threshold", "0", "--output", str(Path(folder) / "found")]
        for command in (train, predict):
            percent = _waited(command)
            told["cases"][command[0]] = {"percent": percent}
            print(f"hf-detr {command[0]}: waited {percent:.1f}% of the time", flush=True)
    path = args.results / f"waiting_{device.type}.json"
    save(path, told)
    print(path)


def _waited(command: list[str]) -> float:
    """Runs `hf-detr`, and reads the percentage in what it says at its end."""
    done = subprocess.run([sys.executable, "-m", "hf_detr.cli.main", *command], stdout=subprocess.PIPE, text=True)
    found = re.search(r"model waited for \w+ ([0-9.]+)% of the time", done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"hf-detr {' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return float(found[1])


if __name__ == "__main__":
    main()
