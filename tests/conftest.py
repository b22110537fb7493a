"""Settings and small things that every test may use."""

import gc
import os
from pathlib import Path

# Before torch is imported: two threads a process, so that tests of several processes do not fight.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Nothing is fetched in a test: a forgotten download fails at once instead of waiting.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of measured facts and photographs beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def _collects_new_objects_alone() -> None:
    """Every training collects garbage several times, which in a process with all libraries loaded takes long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
