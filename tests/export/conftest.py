"""The small checkpoint, traced once for all tests of a process, and what runs the script of a folder without torch."""

import subprocess
import sys

import pytest

from hf_detr import DetrForObjectDetection, DetrImageProcessor, tiny_checkpoint
from hf_detr.data.synthetic.digits import digit_scenes

WITHOUT_TORCH = (
    "import runpy, sys\n"
    # none of these can be imported
    "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'transformers', 'timm', 'hf_detr')))\n"
    "script = sys.argv.pop(1)\n"
    "sys.argv[0] = script\n"
    "runpy.run_path(script, run_name='__main__')\n"
)


def inference(folder, *words) -> subprocess.CompletedProcess:
    """`python inference.py WORDS` of an exported folder, where torch cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder / "inference.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def tiny():
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint()).eval()
    return model, DetrImageProcessor.from_pretrained(tiny_checkpoint())


@pytest.fixture(scope="session")
def exporter(tiny):
    """Its graph, traced once."""
    pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")
    from hf_detr.export import Exporter

    return Exporter(*tiny)


@pytest.fixture
def traced_once(exporter, monkeypatch):
    """Commands export the small checkpoint with the graph that is there."""
    monkeypatch.setattr("hf_detr.export.exporting.Exporter", lambda *_, **__: exporter)


@pytest.fixture(scope="session")
def photograph(tmp_path_factory):
    """An image that no processor leaves at its size."""
    image = digit_scenes(1, 96, seed=5, split="test")[0]["image"].resize((150, 120))
    path = tmp_path_factory.mktemp("images") / "scene.png"
    image.save(path)
    return image, path


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Scenes that the checkpoint has not seen, splits train and test."""
    from datasets import DatasetDict, disable_progress_bars

    disable_progress_bars()
    folder = tmp_path_factory.mktemp("data") / "digits"
    splits = {split: digit_scenes(12, 96, seed=3, split=split) for split in ("train", "test")}
    DatasetDict(splits).save_to_disk(folder)
    return folder
