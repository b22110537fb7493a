"""Many at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import TINY, encoded, served
from .test_api import assert_same
from .test_command import post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_MIB = 2**20


def resident_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_of_200_concurrent_requests_none_is_lost_and_memory_stays(scenes):
    contents = [encoded(scene) for scene in scenes]
    command = ["-m", "hf_detr.cli.main", "serve", "--model", TINY, "--port", "0", "--device", "cpu"]
    with served(*command) as (process, address), ThreadPoolExecutor(200) as pool:
        alone = [post(address, content)["images"][0]["detections"] for content in contents]

        def round_of_200() -> int:
            answers = pool.map(lambda number: post(address, contents[number % len(contents)]), range(200))
            for number, answer in enumerate(answers):
                assert_same(answer["images"][0]["detections"], alone[number % len(contents)])
            return resident_bytes(process.pid)

        first, *others = [round_of_200() for _ in range(4)]
        print([round(one / _MIB) for one in (first, *others)], "MiB after each round")
        assert max(others) - first < 48 * _MIB
