"""`python tests/check_dist.py DIST`: installs the wheel and the sdist, each in an empty environment, and tries them."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

_TRY = """
import hf_detr, torch
from hf_detr import DetrForObjectDetection, DetrImageProcessor
from PIL import Image
processor = DetrImageProcessor.from_pretrained(hf_detr.tiny_checkpoint())
model = DetrForObjectDetection.from_pretrained(hf_detr.tiny_checkpoint())
image = Image.new("RGB", (120, 80), "grey")
outputs = model(**processor(images=image, return_tensors="pt"))
processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.size[::-1]])
assert torch.isfinite(outputs.logits).all()
print(hf_detr.__version__, hf_detr.__file__)
"""


def check(archive: Path) -> None:
    """Raises CalledProcessError where it does not install, or what it installs does not run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv")
        binaries = Path(folder) / "venv" / "bin"
        install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(binaries / "python")]
        subprocess.run([*install, str(archive.resolve())], check=True, env=clean)
        done = subprocess.run(
            [str(binaries / "python"), "-c", _TRY], cwd=folder, env=clean, check=True, capture_output=True, text=True
        )
        version, location = done.stdout.split()
        if folder not in location:
            raise RuntimeError(f"{archive.name} was not what ran: {location}")
        if f"-{version}" not in archive.name:
            raise RuntimeError(f"{archive.name} holds version {version}; pyproject.toml and hf_detr differ.")
        subprocess.run([str(binaries / "hf-detr"), "--version"], cwd=folder, env=clean, check=True)
    print(f"{archive.name}: installs and runs in an empty environment", flush=True)


if __name__ == "__main__":
    found = sorted(Path(sys.argv[1]).glob("*"))
    if {file.name.rpartition(".")[2] for file in found} != {"whl", "gz"}:
        sys.exit(f"{sys.argv[1]} holds {[file.name for file in found]}, not one wheel and one sdist.")
    for file in found:
        check(file)
