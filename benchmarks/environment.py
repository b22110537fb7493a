"""Where and when figures were taken: machine, versions, commit."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path

import torch

from measure import measure_gemm

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "numpy", "scipy")
_PACKAGES += ("hotcoco", "faster-coco-eval", "pycocotools", "torchmetrics")
REPOSITORY = Path(__file__).resolve().parents[1]


def describe(device: torch.device, quick: bool) -> dict:
    """Machine, versions, and how fast it multiplies matrices (GFLOP/s)."""
    side = 256 if quick else 2048 if device.type == "cpu" else 8192
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    installed = {one.name.replace("_", "-"): one.version for one in distributions()}
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {package: installed.get(package) for package in _PACKAGES},
        "gemm_gflop_s": {name: measure_gemm(device, dtype, side) / 1e9 for name, dtype in dtypes.items()},
        "gemm_side": side,
    }


def stamp() -> dict:
    """When, of which commit, and how busy the machine was: of each case, because cases may be run one by one."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"commit": commit(), "time": now, "load_before": load}


def commit() -> str:
    """Of this repository, with `+` where src or benchmarks were changed since; "unknown" outside of git."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py"]
        return head + ("+" if subprocess.check_output(status, text=True).strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and how many threads work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def file_name(device: torch.device) -> str:
    """Of the results: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", f"{device.type} {device_name(device)}".lower()).strip("-") + ".json"


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()
