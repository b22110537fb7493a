"""Whether paths can be a model or a data set, found out before anything heavy is imported."""

import json
from pathlib import Path


def check_model_source(name: str) -> None:
    """Raises ValueError for a path without a DETR; names on the Hub pass."""
    path = Path(name)
    if not path.exists():
        if _is_path(name):
            raise ValueError(f"{name}: no such folder; name a folder with config.json and model.safetensors.")
        return
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(f"{name}: no config.json in it; name a folder written by save_pretrained or hf-detr train.")
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if model_type != "detr":
        raise ValueError(f"{config}: expected model_type 'detr', got {model_type!r}; this tool runs DETR alone.")


def check_data_source(name: str) -> None:
    """Raises ValueError for a path that is not there; names on the Hub pass."""
    if not Path(name).exists() and _is_path(name):
        raise ValueError(f"{name}: no such file or folder; check the path.")


def _is_path(name: str) -> bool:
    return name.count("/") > 1 or name.startswith((".", "/", "~"))
