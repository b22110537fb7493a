"""The JSON that predict writes as it goes: an array that is valid after every image."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_detr.boxes import xyxy_to_xywh

_END = b"\n]\n"


class ResultsFile:
    """A JSON array in a file, which grows by whole writes and is valid between them; a context.

    Raises ValueError, naming the file, where it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._end = 0  # where the closing bracket is
        try:
            # unbuffered: each write goes to the disk, or fails, by itself
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        self._write(b"[" + _END)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Adds all the entries; where they cannot all be written, none, and raises ValueError."""
        rows = b",".join(b"\n" + json.dumps(entry).encode() for entry in entries)
        if rows:
            self._write((b"," if self._end > 1 else b"") + rows + _END)

    def _write(self, content: bytes) -> None:
        try:
            self._file.seek(self._end)
            if self._file.write(content) < len(content):
                raise OSError("no room for it")
        except BaseException as error:  # an interrupt too must not leave half an entry
            self._file.seek(self._end)
            self._file.write(_END if self._end else b"")  # over bytes that are there: takes no room
            self._file.truncate()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self._end += len(content) - len(_END)

    def _failed(self, error: OSError) -> ValueError:
        reason = error.strerror or error
        return ValueError(f"{self.path}: could not be written ({reason}); make room, or take another --output.")

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def result_rows(detections: Mapping[str, Tensor], id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """The detections of one image, the surest first, as COCO results have them: {category_id, category, bbox xywh px,
    score}."""
    order = detections["scores"].argsort(descending=True, stable=True)
    boxes_xywh_px = xyxy_to_xywh(detections["boxes"])[order].tolist()
    scores, labels = detections["scores"][order].tolist(), detections["labels"][order].tolist()
    return [
        {"category_id": label, "category": id2label[label], "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes_xywh_px, scores, strict=True)
    ]
