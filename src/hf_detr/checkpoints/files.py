"""The files of a checkpoint: whether they are whole and stay in their folder, and how to write them so that no half of
them is ever taken for a checkpoint."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

_TEMPORARY = ".writing-"
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_LAST = "config.json"  # without it a folder is no model


def check_weights(folder: Path) -> None:
    """Raises ValueError, naming the file, for weights of a model that are cut off or no weights, for an index whose
    shards lie outside the folder, and for an adapter beside them, for which Transformers would open the checkpoint that
    it names instead. What is there is looked at, not what is missing; no weight is read."""
    for index in sorted(folder.glob("*.index.json")):
        for shard in _shards_of(index):
            if not isinstance(shard, str) or PurePath(shard).is_absolute() or ".." in PurePath(shard).parts:
                raise ValueError(
                    f"{index}: the shard {shard!r} lies outside the checkpoint's folder; correct the index."
                )
    _check_all(folder, *_WEIGHTS)
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise ValueError(f"{adapter}: an adapter beside the weights of a whole model; move it to a folder of its own.")


def check_training_checkpoint(folder: Path) -> None:
    """As `check_weights`, for all that a trainer writes into a checkpoint: optimizer, schedule, random numbers."""
    check_weights(folder)
    _check_all(folder, "*.safetensors", "*.bin", "*.pt", "*.pth")


def _check_all(folder: Path, *patterns: str) -> None:
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.suffix == ".safetensors":
            check_safetensors(path)
        elif not zipfile.is_zipfile(path) and not _is_old_pickle(path):  # a zip's directory is at its end
            raise ValueError(f"{path}: {_state(path)}, no file of torch.save; copy or write it again.")


def check_safetensors(path: Path) -> None:
    """Raises ValueError for a file that is no safetensors file, or not all of one: its header says how long it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= _LONGEST_HEADER:
            raise ValueError(f"{path}: {_state(path)}, no safetensors file; copy or write it again.")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: its header is damaged; copy or write the file again.") from error
    if size != needed:
        raise ValueError(
            f"{path}: {size:,} bytes of {needed:,}, it was not written to its end; copy or write it again."
        )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write a model into, whose files are moved into `folder` at the end of the block.

    Killed at any moment, `folder` holds the old files, the new ones, or no config.json, which no tool takes for a
    model. Where the block raises, `folder` stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_TEMPORARY}*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        yield Path(temporary)
        (folder / _LAST).unlink(missing_ok=True)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == _LAST):
            os.replace(path, folder / path.name)


def _shards_of(index: Path) -> set:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: no index of weights (expected 'weight_map'); copy or write it again.") from error


def _is_old_pickle(path: Path) -> bool:
    """What torch.save wrote before 1.6; such a file is read to its end by loading alone."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _state(path: Path) -> str:
    return "empty" if path.stat().st_size == 0 else "damaged"
