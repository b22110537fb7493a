"""Image files of a data set: listed, and found by the names that annotation tools write into their exports."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .base import IMAGE_SUFFIXES, Findings

_NOT_IMAGES = ("__MACOSX",)


def image_files(root: Path, deep: bool = True) -> Iterator[Path]:
    """Every image file in a folder, and with `deep` below it, in sorted order, links followed; hidden files and folders
    are left aside."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link to a folder above
            continue
        if not deep:
            folders.clear()
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_IMAGES)
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(folder, name)


def visible_folders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in _NOT_IMAGES
    )


def plain_name(name: str) -> str:
    """A file name as tools write it (a URL, `%20`, backslashes, `/data/local-files/?d=a.jpg`) as a plain path."""
    if "?d=" in name:
        name = name.partition("?d=")[2]
    elif name.startswith(("http://", "https://", "s3://", "gs://", "file://")):
        name = urlsplit(name).path
    return unquote(name).replace("\\", "/")


class ImageFinder:
    """Finds the image that an annotation names, in the usual `folders`, searched in that order, and below them but for
    those that are `shallow`.

    A name is taken as it stands, relative to one of the folders, where that is a file below one of them: what
    annotations name elsewhere (an absolute path, `../..`) is not opened. Else the file of that base name is taken
    (`plain_name`; upper and lower case, and case of the suffix, do not count), provided that it is
    the only one, or the only one with the longest matching end of the path. `report` says how many were found so.
    """

    def __init__(self, folders: Iterable[Path], shallow: Iterable[Path] = ()):
        self._shallow = set(shallow)
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._roots = [Path(os.path.abspath(folder)) for folder in self.folders]
        self._last: Path | None = None  # where the last image was: the next one is there too
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}
        self._found_otherwise: list[tuple[str, Path]] = []

    def find(self, name: str) -> Path | None:
        """The file of this name, or None where there is none, or several that fit equally well."""
        for written in dict.fromkeys((name, plain_name(name))):
            for folder in (self._last, *self.folders) if self._last else self.folders:
                if os.path.isfile(folder / written) and self._holds(folder / written):
                    self._last = folder
                    if written != name:
                        self._found_otherwise.append((name, folder / written))
                    return folder / written
        found = self.like(*os.path.splitext(plain_name(name)))
        if found is not None:
            self._found_otherwise.append((name, found))
        return found

    def _holds(self, path: Path) -> bool:
        """Whether a path leads to below one of the folders; links in them are the user's own."""
        path = Path(os.path.abspath(path))
        return any(root in path.parents for root in self._roots)

    def expected(self, name: str) -> Path:
        """Where the file of this name should be, and is not: beside the image that was found last, or where images
        usually are."""
        usual = [folder for folder in self.folders if folder not in self._shallow]
        folder = next(iter([self._last] if self._last else usual or self.folders), Path())
        return folder / (Path(plain_name(name)).name if self.is_outside(name) else name)

    def is_outside(self, name: str) -> bool:
        """Whether a name leads out of all folders."""
        return not any(self._holds(folder / name) for folder in self.folders)

    def like(self, stem: str, suffix: str | None = None) -> Path | None:
        """The one image file of this path without a suffix, of any type or of the type of `suffix`."""
        parts = [part.casefold() for part in stem.split("/") if part]
        if not parts:
            return None
        for folder in self.folders:
            best = [
                path
                for path in self._files(folder).get(parts[-1], ())
                if suffix is None or path.suffix.casefold() == suffix.casefold()
            ]
            for length in range(2, len(parts) + 1):
                longer = [path for path in best if _tail(path, length) == parts[-length:]]
                best = longer or best
            if len(best) == 1:
                return best[0]
        return None

    def files(self) -> list[Path]:
        """All image files below the folders."""
        paths = {path for folder in self.folders for paths in self._files(folder).values() for path in paths}
        return sorted(paths)

    def report(self, source: Path, split: str, findings: Findings) -> None:
        """One line that says how many images were found by their base name."""
        if self._found_otherwise:
            name, path = self._found_otherwise[0]
            message = (
                f"{len(self._found_otherwise)} images are not where it says and were found by their base name, such as "
                f"{name!r} as {path}."
            )
            findings.warning("found by base name", source, message, split)

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._by_stem:
            index: dict[str, list[Path]] = defaultdict(list)
            for path in image_files(folder, deep=folder not in self._shallow):
                index[path.stem.casefold()].append(path)
            self._by_stem[folder] = index
        return self._by_stem[folder]


def _tail(path: Path, length: int) -> list[str]:
    return [part.casefold() for part in path.with_suffix("").parts[-length:]]
