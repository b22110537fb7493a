"""Forty random damages of the files of a model and of a run: no command ends in a traceback."""

import json
import random
import shutil
import warnings

import pytest

from hf_detr.cli.main import main

from ..data.test_mutations import change_json
from .conftest import write_coco

FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "metrics.json", "run.json", "README.md")


@pytest.fixture(scope="module")
def sound(model_dir, tmp_path_factory):
    """A run folder, and data that it knows."""
    root = tmp_path_factory.mktemp("sound")
    shutil.copytree(model_dir, root / "run")
    metrics = {"split": "test", "metrics": {"map": 0.5, "per_class": {}}, "history": [{"loss": 1.0, "epoch": 1}]}
    (root / "run" / "metrics.json").write_text(json.dumps(metrics))
    (root / "run" / "run.json").write_text(json.dumps({"epochs": 1, "seed": 7}))
    (root / "run" / "README.md").write_text("---\nbase_model: facebook/detr-resnet-50\n---\n# run\n")
    return root / "run", write_coco(root / "coco")


def change_header(content: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: its length, or something in it."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    if rng.random() < 0.3:
        return rng.choice((0, 1, length - 1, length + 1, 2**40, 2**63)).to_bytes(8, "little") + content[8:]
    header = change_json(header.decode(), rng).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def damage(folder, rng: random.Random) -> str:
    path = folder / rng.choice(FILES)
    content = path.read_bytes()
    if rng.random() < 0.25 or path.suffix == ".md":
        at = rng.randrange(len(content) + 1)
        path.write_bytes(content[:at] if rng.random() < 0.7 else content[:at] + rng.randbytes(3) + content[at + 3 :])
        return f"{path.name} cut or changed at byte {at}"
    if path.suffix == ".safetensors":
        path.write_bytes(change_header(content, rng))
        return "another header"
    text = change_json(content.decode(), rng)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: {text}"


@pytest.mark.parametrize("part", range(4))
def test_damaged_models_end_in_a_line_or_work(sound, tmp_path, capsys, part):
    run, data = sound
    for seed in range(10):
        rng = random.Random(f"{part} {seed}")
        folder = tmp_path / f"run{seed}"
        shutil.copytree(run, folder)
        done = damage(folder, rng)
        words = {
            "evaluate": ["evaluate", folder, data, "--device", "cpu"],
            "check": ["check", data, "--headers-only", "--model", folder],
            "predict": ["predict", folder, data, "--output", tmp_path / f"out{seed}", "--device", "cpu"],
            "train": ["train", data, "--output", folder, "--resume", "--epochs", "1", "--model", folder],
        }
        for command in ("evaluate", rng.choice(list(words))):
            capsys.readouterr()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                code = main([str(word) for word in words[command]])
            errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
            assert code in (0, 1, 2), done
            assert len(errors) == (code == 2), f"{done}\n{errors}"
            assert not errors or str(folder) in errors[0], f"{done}\n{errors}"
