"""What predict writes as it goes: JSON that is valid after every image, and maps of segments."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hf_detr.evaluation.rows import result_rows as result_rows


class ResultsFile:
    """A JSON array in a file, which grows by whole writes and is valid between them; a context.

    With a `key`, the array is its value in a JSON object.
    Raises ValueError, naming the file, where it cannot be written.
    """

    def __init__(self, path: Path, key: str | None = None):
        self.path = path
        begin = b"[" if key is None else b'{"' + key.encode() + b'": ['
        self._after = b"\n]\n" if key is None else b"\n]}\n"
        self._begin = len(begin)
        self._end = 0  # where the closing bracket is
        try:
            # unbuffered: each write goes to the disk, or fails, by itself
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        self._write(begin + self._after)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Adds all the entries; where they cannot all be written, none, and raises ValueError."""
        rows = b",".join(b"\n" + json.dumps(entry).encode() for entry in entries)
        if rows:
            self._write((b"," if self._end > self._begin else b"") + rows + self._after)

    def _write(self, content: bytes) -> None:
        try:
            self._file.seek(self._end)
            if self._file.write(content) < len(content):
                raise OSError("no room for it")
        except BaseException as error:  # an interrupt too must not leave half an entry
            self._file.seek(self._end)
            self._file.write(self._after if self._end else b"")  # over bytes that are there: takes no room
            self._file.truncate()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self._end += len(content) - len(self._after)

    def _failed(self, error: OSError) -> ValueError:
        reason = error.strerror or error
        return ValueError(f"{self.path}: could not be written ({reason}); make room, or take another --output.")

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def panoptic_annotation(
    rows: Sequence[Mapping[str, Any]], image_id: int, file_name: str, stuff: Collection[int]
) -> dict[str, Any]:
    """COCO's annotation of the segments in `rows`, whose map is the PNG `file_name`."""
    segments = [
        {name: row[name] for name in ("id", "category_id", "category", "bbox", "area", "score")}
        | {"isthing": int(row["category_id"] not in stuff), "iscrowd": 0}
        for row in rows
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def write_segment_map(segmentation: Tensor, path: Path) -> None:
    """A map (H, W) of ids as COCO's panoptic PNG: r + 256 g + 65536 b is the id, 0 none."""
    ids = segmentation.clamp(min=0).numpy().astype(np.int64)
    colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(colours).save(path)
    except OSError:
        path.unlink(missing_ok=True)  # half of a map
        raise
