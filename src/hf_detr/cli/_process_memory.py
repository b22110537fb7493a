"""A process keeps the memory that it frees.

By glibc's defaults, what is larger than 32 MiB goes back to the system each time it is freed and comes back page by
page: of a training step on the CPU with images of usual size, that is every large feature map, in every step
(docs/performance.md).
"""

import ctypes
import os

# of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """From now on freed memory stays with this process, for what it allocates next; returns whether it does.

    It does not where the C library is not glibc, or where the environment says how to allocate (GLIBC_TUNABLES,
    MALLOC_MMAP_THRESHOLD_ and the like), which then holds.
    """
    if any(name == "GLIBC_TUNABLES" or (name.startswith("MALLOC_") and name.endswith("_")) for name in os.environ):
        return False
    try:
        if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError, ValueError):  # another system
        return False
    # nothing is mapped for itself alone, and the heap does not shrink by less than 2 GiB
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
