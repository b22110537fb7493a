"""The page on masks, run as it stands, on fewer scenes and for fewer steps."""

import os
import re

import pytest
import torch
from datasets import disable_progress_bars

from hf_detr import digit_scenes

from .pages import blocks

SHORTER = {r"digit_scenes\((400|60)": "digit_scenes(4", "max_steps=400": "max_steps=2, use_cpu=True"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the data of the page are, and an image."""
    disable_progress_bars()
    place, before = tmp_path_factory.mktemp("masks"), (os.getcwd(), torch.get_num_threads())
    os.chdir(place)
    torch.set_num_threads(1)
    digit_scenes(1)[0]["image"].save("scene.png")
    exec(_shorter(blocks("masks.md", "python")[0]), {})
    yield place
    os.chdir(before[0])
    torch.set_num_threads(before[1])


def _shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = re.sub(long, short, text)
    return text


def test_the_python_blocks_run_in_their_order(folder):
    names: dict = {}
    for block in blocks("masks.md", "python")[1:]:
        exec(_shorter(block), names)
    assert names["trainer"].state.global_step == 2
    assert set(names["found"]) == {"scores", "labels", "boxes", "masks"}
    assert set(names["segments"]) == {"segmentation", "segments_info"}
