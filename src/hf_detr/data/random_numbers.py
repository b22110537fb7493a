"""Random numbers of augmentations: torch's, on the host, and reproducible in any process."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def mixed(*numbers: int) -> int:
    """One seed of several numbers, in [0, 2**63)."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within, the host's global random numbers follow from `numbers`; afterwards they go on as if nothing had been."""
    seed = mixed(*numbers)
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, users' augmentations may draw from it
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def random_share() -> float:
    """A random number in [0, 1), whatever the default device and dtype."""
    return float(torch.rand((), dtype=torch.float32, device="cpu"))


def between(low: int, high: int) -> int:
    """A random number, both ends among them."""
    return int(torch.randint(low, high + 1, (), device="cpu"))


def between_floats(low: float, high: float) -> float:
    """A random number from `low` to `high`."""
    return low + (high - low) * random_share()


def one_of(values: Sequence[Any]) -> Any:
    """A random one of these."""
    return values[between(0, len(values) - 1)]
