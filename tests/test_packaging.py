"""The package as it is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import hf_detr

ROOT = Path(__file__).resolve().parents[1]
SNIPPET = """
import sys
from PIL import Image
from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor
folder = sys.argv[1]
processor = DetrImageProcessor.from_pretrained(folder)
model = DetrForObjectDetection.from_pretrained(folder)
image = Image.new("RGB", (120, 80), "grey")
outputs = model(**processor(images=image, return_tensors="pt"))
detections = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.size[::-1]])
assert len(detections[0]["boxes"]) == model.config.num_queries
import hf_detr
tiny = DetrForObjectDetection.from_pretrained(hf_detr.tiny_checkpoint())
assert tiny.config.id2label[7] == "seven"
print("ok", hf_detr.__file__)
"""


def test_importing_is_quick_and_brings_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import hf_detr; seconds = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, sorted(sys.modules)\n"
        "print(seconds)"
    )
    times = []
    for _ in range(3):  # the quickest: another process may have held the machine
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        times.append(float(done.stdout))
    assert min(times) < 0.2


def test_every_public_name_is_there_and_an_unknown_one_is_named():
    for name in hf_detr.__all__:
        assert getattr(hf_detr, name) is not None
    assert set(hf_detr.__all__) <= set(dir(hf_detr))
    with pytest.raises(AttributeError, match=r"no attribute 'DetrConfg'; it offers .*DetrConfig"):
        _ = hf_detr.DetrConfg


@pytest.mark.slow
def test_the_wheel_alone_in_an_empty_environment_runs_the_readme_snippet(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--installer", "uv", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=280)
    (wheel,) = tmp_path.glob("hf_detr-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"hf_detr/py.typed", "hf_detr/assets/tiny/model.safetensors"} <= set(names)
    assert wheel.stat().st_size < 8e6
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]

    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), str(wheel)],
        check=True,
        timeout=280,
    )
    from hf_detr import DetrImageProcessor
    from tests.small_models import small_model

    small_model().save_pretrained(tmp_path / "checkpoint")
    DetrImageProcessor(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(tmp_path / "checkpoint")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-c", SNIPPET, str(tmp_path / "checkpoint")],
        cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")
