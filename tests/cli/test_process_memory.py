"""What a process frees stays with it once it has asked for that."""

import os
import subprocess
import sys

import pytest

# 64 MiB, made and freed; then again, counting pages that the system had to hand out
PROGRAM = """
import resource, sys
import torch
from hf_detr.cli._process_memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(10):  # it takes some until the blocks fit each other
    torch.zeros(2**24).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.zeros(2**24).add_(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(argument: str, **environment: str) -> tuple[str, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], stdout=subprocess.PIPE, text=True, check=True, env=own | environment
    )
    kept, pages = ended.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_fetched_from_the_system_again():
    kept, pages = run("keep")
    if kept == "False":
        pytest.skip("the C library is not glibc")
    _, pages_by_default = run("leave")
    assert pages < 1000
    # five times 64 MiB in pages of 4 KiB, or of 64 on some machines
    assert pages_by_default > 10 * max(pages, 100)


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_holds(name):
    value = "glibc.malloc.mmap_threshold=131072" if name.startswith("GLIBC") else "131072"
    assert run("keep", **{name: value})[0] == "False"
