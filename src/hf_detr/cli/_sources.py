"""Whether paths can be a model or a data set, found out before anything heavy is imported."""

import json
from pathlib import Path
from typing import Any

# names of what the package carries, where no folder is called so
TINY, IMAGENET = "tiny", "imagenet"


def model_source(name: str) -> str:
    """The folder or name on the Hub of a `--model`: that of the package's own detector for "tiny", of its start with an
    ImageNet backbone for "imagenet". ValueError as in `check_model_source`, or where that cannot be made."""
    if name == TINY and not Path(name).exists():
        from hf_detr.checkpoints.tiny import tiny_checkpoint

        return tiny_checkpoint()
    if name == IMAGENET and not Path(name).exists():
        from hf_detr.training.imagenet_start import imagenet_start_folder

        try:
            return imagenet_start_folder()
        except ImportError as error:
            raise ValueError(f"--model {IMAGENET}: {error}") from error
    check_model_source(name)
    return name


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
    check_config_file(config)


def check_config_file(path: Path) -> None:
    """Raises ValueError, naming it, for a config.json that is damaged or of another architecture."""
    model_type = read_json_object(path).get("model_type")
    if model_type != "detr":
        raise ValueError(f"{path}: expected model_type 'detr', got {model_type!r}; this tool runs DETR alone.")


def read_json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises ValueError, naming it, where that is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also for bytes that are no UTF-8
        reason = error if path.stat().st_size else "it is empty"
        raise ValueError(f"{path}: not a JSON file ({reason}); write it again, or take another.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}; take another file.")
    return content


def check_data_source(name: str) -> None:
    """Raises ValueError for a path that is not there; names on the Hub pass."""
    if not Path(name).exists() and _is_path(name):
        raise ValueError(f"{name}: no such file or folder; check the path.")


def _is_path(name: str) -> bool:
    return name.count("/") > 1 or name.startswith((".", "/", "~"))
