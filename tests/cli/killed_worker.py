"""`python killed_worker.py KILLS SECONDS WORDS`: `hf-detr train WORDS`, killed so often and each time resumed.

Each attempt is a process of its own, forked from this one, so that the libraries are imported once. It is killed when
it has written its first checkpoint and SECONDS more have passed.
"""

import os
import signal
import sys
import time
from pathlib import Path

from hf_detr.cli.main import main
from hf_detr.training import last_checkpoint

kills, seconds, *words = sys.argv[1:]
run = Path(words[words.index("--output") + 1])
for attempt in range(int(kills) + 1):
    resume = ["--resume"] if attempt else []
    before = last_checkpoint(run)
    process = os.fork()
    if process == 0:
        os._exit(main(["train", *words, *resume]))
    if attempt < int(kills):
        while last_checkpoint(run) == before:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "ended before it was killed"
            time.sleep(0.01)
        time.sleep(float(seconds))
        assert not (run / "model.safetensors").exists(), "ended before it was killed"
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if attempt < int(kills) else 0)
