"""Two processes that compute together, as `torchrun --nproc_per_node 2` starts them, on the CPU."""

import gc
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def in_two_processes(work: Callable[..., None], *args: Any) -> None:
    """Calls `work(rank, *args)` in each of two processes of one gloo group, which the first collective of a Trainer,
    or `init_process_group("gloo")`, starts. Raises what either raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, work, args), nprocs=2)


def _process(rank: int, port: int, work: Callable[..., None], args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    work(rank, *args)
    # A group ends with the last reference to it. One of a wrapped model that is still there would be dropped by the
    # interpreter on its way out, where a thread of the group that asks for the interpreter aborts the process.
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
