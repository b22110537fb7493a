"""Whether the image of each row can be used: opened as training opens it, once, and remembered in the user's cache."""

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from warnings import warn

import PIL
from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage

from ..image_processing.loading import load_image
from .formats.base import BAD_IMAGE, UNREADABLE, Findings, upright_size

ON_BAD_IMAGE = ("error", "drop")
_READER = f"1, Pillow {PIL.__version__}"  # what was verified otherwise is verified again


class Seen(NamedTuple):
    """The result of opening an image: the digest of its bytes, its upright (width, height), or kind and message of its
    problem."""

    digest: bytes = b""
    size_wh: tuple[int, int] | None = None
    problem: tuple[str, str] | None = None


def cache_folder() -> Path:
    """Where hf_detr remembers things: `hf_detr` in $HF_HOME, or in the huggingface folder of the user's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hf_detr"


def look_at_images(dataset: Any, decode: bool = True) -> Iterator[tuple[dict, Seen]]:
    """Rows of the schema, images undecoded, with the result of opening each; read by a few threads, a few dozen at a
    time.

    An image file that was found good before, and has the size and time of change that it had then, is not read again.
    `decode=False` reads headers alone: quicker, finds less, remembers nothing.
    """
    rows = iter(dataset.cast_column("image", Image(decode=False)))
    with _Remembered() as remembered, ThreadPoolExecutor() as pool:
        while chunk := list(islice(rows, 64)):
            yield from zip(chunk, pool.map(lambda row: _look(row, decode, remembered), chunk), strict=True)
            remembered.commit()


def without_bad_images(dataset: Any, split: str, findings: Findings) -> Any:
    """The data set less the rows whose image cannot be used, each reported to `findings`; streams, which leave them out
    as they are read, as they are."""
    if isinstance(dataset, IterableDataset):
        return dataset
    good = _good_rows(dataset, split, findings)
    return dataset if len(good) == len(dataset) else dataset.select(good)


def _good_rows(dataset: Dataset, split: str, findings: Findings) -> list[int]:
    good = []
    for index, (row, seen) in enumerate(look_at_images(dataset)):
        if seen.problem is None:
            good.append(index)
        else:
            findings.error(seen.problem[0], place_of(row, split), seen.problem[1], split)
    return good


def drop_bad_images(dataset: Any, name: str) -> Any:
    """A `Dataset` in the schema, whatever its transform, less the rows whose image cannot be used; warns with their
    number. Other data sets come back as they are."""
    if not isinstance(dataset, Dataset) or "image" not in dataset.column_names:
        return dataset
    findings = Findings(dropped=BAD_IMAGE)
    good = _good_rows(dataset.with_format(None), name, findings)
    if said := findings.summary_of_dropped(name):
        warn(said, stacklevel=2)
    return dataset if len(good) == len(dataset) else dataset.select(good)


def place_of(row: dict, split: str) -> str:
    """Which image: id and, where there is one, file."""
    path = row["image"].get("path") if isinstance(row["image"], dict) else None
    return f"image_id {row.get('image_id')}" + (f" ({path})" if path else f" (split {split!r})")


def is_good(row: dict) -> bool:
    """Whether the undecoded image of a row can be used."""
    return _look(row, True, None).problem is None


def _look(row: dict, decode: bool, remembered: "_Remembered | None") -> Seen:
    seen = _open(row["image"], decode, remembered)
    claimed = row.get("width"), row.get("height")
    if seen.problem is None and all(claimed) and seen.size_wh != claimed:
        message = (
            f"the image is {seen.size_wh[0]} x {seen.size_wh[1]} pixels, annotated as {claimed[0]} x {claimed[1]}; "
            "its boxes cannot be trusted: correct the annotated size, or the image."
        )
        return Seen(seen.digest, seen.size_wh, ("size differs", message))
    return seen


def _open(image: dict | None, decode: bool, remembered: "_Remembered | None") -> Seen:
    if not image or not (image.get("bytes") or image.get("path")):
        return Seen(problem=("missing image", "the row has no image; add it or remove the row."))
    key = None
    try:
        if not image.get("bytes"):
            status = os.stat(image["path"])
            key = (os.fsencode(os.path.abspath(image["path"])), status.st_size, status.st_mtime_ns)
            if remembered is not None and (seen := remembered.get(key)):
                return seen
        content = image.get("bytes") or Path(image["path"]).read_bytes()
    except FileNotFoundError:
        return Seen(problem=("missing image", "no such file; restore it or remove its entry."))
    except (OSError, ValueError) as error:
        return Seen(problem=("corrupt image", f"cannot be read ({error}); check the file."))
    digest = blake2b(content, digest_size=16).digest()
    try:
        size_wh = upright_size(BytesIO(content))
        if decode:
            with PILImage.open(BytesIO(content)) as opened:  # by the function that training reads with
                pixels = load_image(opened, "pixels", do_convert_rgb=True, do_exif_transpose=True)
            if pixels.is_floating_point() and not pixels.isfinite().all():
                raise ValueError("pixels are NaN or infinite")
            size_wh = (pixels.shape[-1], pixels.shape[-2])
    except UNREADABLE as error:
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else str(error).rstrip(".")
        return Seen(digest, None, ("corrupt image", f"cannot be decoded ({reason}); replace it or remove its entry."))
    seen = Seen(digest, size_wh)
    if decode and key is not None and remembered is not None:
        remembered.put(key, seen)
    return seen


class _Remembered:
    """Good images by path, size and time of change, in an SQLite file, which is safe to share among processes.

    Whatever goes wrong with the file, a damaged one or a folder that cannot be written, costs the memory alone.
    """

    def __init__(self):
        self._lock, self._new, self._database = Lock(), [], None

    def __enter__(self) -> "_Remembered":
        path = cache_folder() / "verified_images.sqlite3"
        for _ in range(2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(path, timeout=2, check_same_thread=False)
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS images (path BLOB PRIMARY KEY, size INTEGER, changed_ns INTEGER, "
                    "reader TEXT, digest BLOB, width INTEGER, height INTEGER)"
                )
                self._database.execute("SELECT * FROM images LIMIT 1").fetchone()
                break
            except (sqlite3.Error, OSError) as error:
                self.__exit__()
                if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.OperationalError):
                    break  # locked, or no place to write
                path.unlink(missing_ok=True)  # no database, or a damaged one
        return self

    def __exit__(self, *_: Any) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def get(self, key: tuple[bytes, int, int]) -> Seen | None:
        """What was seen of the file of this path, size and time of change."""
        if self._database is None:
            return None
        try:
            with self._lock:
                found = self._database.execute(
                    "SELECT digest, width, height FROM images "
                    "WHERE path = ? AND size = ? AND changed_ns = ? AND reader = ?",
                    (*key, _READER),
                ).fetchone()
        except sqlite3.Error:
            return None
        return found and Seen(found[0], (found[1], found[2]))

    def put(self, key: tuple[bytes, int, int], seen: Seen) -> None:
        """Remembers an image with the next `commit`."""
        with self._lock:
            self._new.append((*key, _READER, seen.digest, *seen.size_wh))

    def commit(self) -> None:
        """Writes what is new."""
        new, self._new = self._new, []
        if self._database is None or not new:
            return
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", new)
        except sqlite3.Error:
            self.__exit__()  # a full disk, a file that was damaged since: go on without
