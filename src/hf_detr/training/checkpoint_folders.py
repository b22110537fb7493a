"""Which checkpoints of a run are whole. A process can be killed while it writes one."""

import json
import re
from pathlib import Path

from ..checkpoints.files import check_training_checkpoint

# What Transformers writes last, after weights, optimizer, schedule and random numbers.
_LAST_WRITTEN = "trainer_state.json"
# The weights that train, where model.safetensors holds their average.
TRAINED_WEIGHTS = "training_weights.safetensors"
# The parameters that only training has, which model.safetensors leaves out.
TRAINING_ONLY = "training_only.safetensors"


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint folder in `output_dir`, or None. Broken ones are passed over."""
    found = [(int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*") if (match := _number(path))]
    return next((path for _, path in sorted(found, reverse=True) if is_whole(path)), None)


def is_whole(checkpoint: str | Path) -> bool:
    """Whether a checkpoint folder was written to its end, and none of its files was cut off since."""
    try:
        json.loads((Path(checkpoint) / _LAST_WRITTEN).read_text(encoding="utf-8"))
        check_training_checkpoint(Path(checkpoint))
    except (OSError, ValueError):
        return False
    return True


def is_finished(checkpoint: str | Path, epochs: float | None = None) -> bool:
    """Whether the training ended with this whole checkpoint: by its steps, a time limit or early stopping. With
    `epochs`, whether one of so many epochs would have."""
    state = json.loads((Path(checkpoint) / _LAST_WRITTEN).read_text(encoding="utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {})
    stopped = control.get("args", {}).get("should_training_stop", False)
    return stopped and (epochs is None or epochs <= state["num_train_epochs"])


def _number(path: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name) if path.is_dir() else None
