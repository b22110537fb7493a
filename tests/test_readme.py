"""What the README shows is what the package does."""

import re
from pathlib import Path

import pytest
from PIL import Image

from hf_detr import DetrImageProcessor, __version__, shape_scenes
from tests.small_models import small_model

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Where the Hub's name is a folder, beside a photograph and a data set of the name that is shown."""
    small_model(num_labels=3).save_pretrained(tmp_path / "facebook" / "detr-resnet-50")
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "facebook" / "detr-resnet-50")
    Image.new("RGB", (120, 90), "white").save(tmp_path / "photograph.jpg")
    shape_scenes(10).save_to_disk(tmp_path / "VOC2012")
    monkeypatch.chdir(tmp_path)


def test_every_snippet_runs(in_a_folder):
    first, training, backbone = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert set(names["detections"][0]) == {"scores", "labels", "boxes"}
    exec(training, names)
    assert set(names["train"][0]) == {"pixel_values", "labels"}
    assert names["model"].config.num_labels == 5
    # the weights of a large backbone would be fetched
    exec(
        backbone.replace("convnext_tiny", "test_convnext").replace(
            "pretrained_backbone=True", "pretrained_backbone=False"
        )
    )


def test_every_file_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_table_against_stock_holds_measured_rows():
    measured = (ROOT / "docs" / "performance.md").read_text()
    stock = [line for line in measured.splitlines() if line.startswith("|") and "| stock" in line]
    shown = re.findall(r"^\| [^|]+ \| ([\d.]+ \w+) \| ([\d.]+ \w+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert shown
    for ours, theirs, ratio in shown:
        found = [line for line in stock if f"| {ours} |" in line and f"| {theirs} |" in line and f"**{ratio}**" in line]
        assert found, f"docs/performance.md has no row with {ours}, {theirs} and {ratio}: take the README's from there"


def test_it_is_one_screen_and_a_few():
    assert len(README.splitlines()) <= 150


def test_the_version_is_one_number():
    for file in ("pyproject.toml", "CITATION.cff"):
        [version] = re.findall(r"^version\s*[:=]\s*\"?([\d.]+)", (ROOT / file).read_text(), re.MULTILINE)
        assert version == __version__, file
