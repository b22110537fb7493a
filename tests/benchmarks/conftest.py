"""The benchmarks are scripts that find each other beside themselves; so do their tests."""

import sys
from pathlib import Path

import pytest
import transformers

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _transformers_speaks_again_afterwards():
    """The scripts silence it for the whole process, which is theirs."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
