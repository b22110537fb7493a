"""What the README shows is what the package does."""

import re
from pathlib import Path

from PIL import Image

from hf_detr import DetrImageProcessor
from hf_detr.cli.main import _COMMANDS
from tests.small_models import small_model

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_first_snippet_runs_on_a_local_checkpoint(tmp_path, monkeypatch):
    small_model(num_labels=3).save_pretrained(tmp_path / "facebook" / "detr-resnet-50")
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "facebook" / "detr-resnet-50")
    Image.new("RGB", (120, 90), "white").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)  # the Hub's name is a folder here
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], names)
    assert set(names["detections"][0]) == {"scores", "labels", "boxes"}


def test_every_command_of_the_readme_exists():
    shown = set(re.findall(r"^hf-detr (\w+)", README, re.MULTILINE))
    assert shown
    assert shown <= set(_COMMANDS)


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (Path(__file__).resolve().parents[1] / target).exists(), target
