"""Where figures were taken: without it they are nobody's."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from measure import measure_gemm

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "numpy",
    "scipy",
    "hotcoco",
    "faster-coco-eval",
    "pycocotools",
    "torchmetrics",
)
REPOSITORY = Path(__file__).resolve().parents[1]


def describe(device: torch.device, quick: bool) -> dict:
    """Machine, versions, and how fast it multiplies matrices (GFLOP/s)."""
    side = 256 if quick else 2048 if device.type == "cpu" else 8192
    gemm = {
        name: measure_gemm(device, dtype, side) / 1e9
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {package: _version(package) for package in _PACKAGES},
        "gemm_gflop_s": gemm,
        "gemm_side": side,
    }


def stamp() -> dict:
    """When, of which commit, and how busy the machine was: of each case, because cases may be run one by one."""
    return {
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def commit() -> str:
    """The commit of this repository, with `+` where tracked files were changed since; "unknown" outside of git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


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
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
