"""Files and folders that commands write: tried before the work, and written whole or not at all."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ._errors import about

_ELSEWHERE = "free some space, or name another path"


def check_output_file(path: Path | None, option: str) -> None:
    """Raises ValueError, naming the option, where a file of this name could not be written; makes its folder."""
    if path is None:
        return
    with about(f"{option} {path}", "name another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        with path.open("ab"):  # what is there stays
            pass
        if not existed:
            path.unlink()


def check_output_folder(folder: Path, overwrite: bool = True) -> None:
    """Makes the folder. Raises ValueError where nothing could be written into it, and, unless `overwrite`, where it
    holds something."""
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; name another folder, or pass --overwrite.")
    with about(folder, "name another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def new_run_folder(data: str) -> Path:
    """Makes a folder in `runs` with the name of a data set, and a number where that is taken; ValueError where nothing
    can be written."""
    with about("runs", "name a run folder by --output"):
        for number in itertools.count(1):
            folder = Path("runs", data_name(data) + (f"-{number}" if number > 1 else ""))
            try:
                folder.mkdir(parents=True)  # which no other process does then
                return folder
            except FileExistsError:
                if not folder.exists():
                    raise


def data_name(data: str) -> str:
    """What a data set is called: on this machine by its folder, not that of its annotations; else as on the Hub."""
    path = Path(data).resolve()
    if not path.exists():
        return data.rstrip("/").split("/")[-1]
    path = path.parent if path.is_file() else path
    return (path.parent.name if path.name.lower() in ("annotations", "labels") else path.name) or "data"


_locked: list[int] = []  # open folders of this process


def _close_locked() -> None:
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    # a data loader's worker, which may outlive a killed training by seconds, must not go on with its lock
    os.register_at_fork(after_in_child=_close_locked)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder for this run, however it ends. Raises ValueError where another process does.

    Where there are several processes of one run the first holds it; where the system cannot lock, none does.
    """
    if fcntl is None or int(os.environ.get("RANK", "0")):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locked.append(descriptor)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"--output {folder}: another process trains into it; wait, or name another.") from None
        yield
    finally:
        if descriptor in _locked:  # else this is a child, which has closed it
            _locked.remove(descriptor)
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all. ValueError, naming it, where that fails."""
    with about(path, _ELSEWHERE):
        target = path.resolve()
        if target.exists() and not target.is_file():  # a terminal, a pipe
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
