"""The served page as a Space of the Hub: a folder to upload as it is."""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from hf_detr import __version__

_APP = '''"""The page of `hf-detr serve`, and POST /detect."""

import os
import sys
from pathlib import Path

from hf_detr.cli.main import main

os.chdir(Path(__file__).parent)
port = os.environ.get("GRADIO_SERVER_PORT", "7860")
sys.exit(main(["serve", "--host", "0.0.0.0", "--port", port, {words}]))
'''

_CARD = """---
title: {quoted_title}
emoji: 🔎
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
tags: [object-detection, detr]
{models}---

# {title}

Drop an image, or several; move the thresholds; click a box to see what it looked at. Results can be downloaded as JSON
and as an image. What is sent is deleted within an hour or so, and at the end of the process.

Programs send images to `POST /detect`, which `/openapi.json` describes:

```
curl -F image=@photo.jpg https://OWNER-NAME.hf.space/detect
```

Model: {model}. Written by `hf-detr serve --write-space`, hf_detr {version}; limits are in `app.py`.
"""

# Git keeps weights elsewhere on the Hub
_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_space(folder: Path, model: str, words: Sequence[str]) -> None:
    """Writes app.py, requirements.txt and README.md into `folder`, and a local model into its folder `model`.

    `words`: arguments of `hf-detr serve` beside model, host and port. Raises ValueError for a folder that holds
    something, and for a local model whose weights are not safetensors.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--write-space {folder} exists and is not empty; name another folder.")
    source = Path(model)
    title = source.resolve().name if source.is_dir() else model.rpartition("/")[2]
    files = [*source.glob("config.json"), *source.glob("preprocessor_config.json")] if source.is_dir() else []
    weights = sorted(source.glob("model*.safetensors*")) if source.is_dir() else []
    if source.is_dir() and not (len(files) == 2 and weights):
        raise ValueError(
            f"{model}: a Space needs its config.json, preprocessor_config.json and model.safetensors; save it again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*files, *weights):
        (folder / "model").mkdir(exist_ok=True)
        shutil.copy(file, folder / "model")
    named = "model" if source.is_dir() else model
    quoted = json.dumps(["--model", named, *words])[1:-1]  # which Python reads as well
    (folder / "app.py").write_text(_APP.format(words=quoted), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"hf-detr[serve]=={__version__}\n", encoding="utf-8")
    (folder / ".gitattributes").write_text(_ATTRIBUTES, encoding="utf-8")
    card = _CARD.format(
        title=title,
        quoted_title=json.dumps(title),
        gradio=version("gradio"),
        models="" if source.is_dir() else f"models: [{model}]\n",
        model="in the folder `model`" if source.is_dir() else f"[{model}](https://huggingface.co/{model})",
        version=__version__,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
