"""What a user reads when something goes wrong: one line with the place, what is wrong, and the remedy."""

import argparse
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EEXIST: "it is a file and not a folder; name another path",
    errno.EISDIR: "name a file",
    errno.EACCES: "check its permissions, or name another path",
    errno.EPERM: "check its permissions, or name another path",
    errno.EROFS: "name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOSPC: "free some space, or name another path",
    errno.EDQUOT: "free some space, or name another path",
    errno.EFBIG: "free some space, or name another path",
}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
_WRITE_FAILED = ("PytorchStreamWriter", "inline_container", "iostream error")  # what torch.save says of a full disk
# arguments by which a line can say what it is about
_SOURCES = ("model", "checkpoint", "data", "image", "images", "queries_over", "output", "config", "image_dir", "json")
_SOURCES += ("results", "draw", "teacher")


@contextmanager
def about(place: str | Path, remedy: str) -> Iterator[None]:
    """Whatever a library raises in the block becomes a ValueError that names the `place` and the `remedy`; errors that
    name the place already, and a lack of memory, pass."""
    try:
        yield
    except (MemoryError, BrokenPipeError):
        raise
    except Exception as error:
        is_own = isinstance(error, ValueError) or (isinstance(error, FileNotFoundError) and not error.errno)
        if _is_lack_of_memory(error) or (is_own and str(place) in str(error)):
            raise
        reason = one_line(error).rstrip(". ")
        for known in (str(place), str(getattr(error, "filename", None))):
            reason = reason.removeprefix(f"{known}: ") if known in str(place) else reason
        has_remedy = isinstance(error, OSError) and error.errno in _REMEDIES
        raise ValueError(f"{place}: {reason}." if has_remedy else f"{place}: {reason}; {remedy}.") from error


def in_one_line(error: Exception, args: argparse.Namespace) -> str | None:
    """What to tell the user of a command that ended with this error; None where it is a fault of the program."""
    if _is_lack_of_memory(error):
        return f"not enough memory ({one_line(error)}); take a smaller --batch-size, smaller images or a smaller model."
    if _is_failed_write(error):
        return f"{getattr(args, 'output', 'a file')}: could not be written ({one_line(error)}); free some space."
    if not isinstance(error, ValueError | TypeError | OSError | OverflowError):
        return None
    text = one_line(error)
    sources = [value for name in _SOURCES if (value := getattr(args, name, None))]
    sources = [one for value in sources for one in (value if isinstance(value, list) else [value])]
    sources = [str(one) for one in sources if isinstance(one, str | Path)]
    names_something = text.startswith("--") or any(source in text for source in sources)
    return text if names_something or not sources else f"{', '.join(sources[:2])}: {text}"


def one_line(error: BaseException) -> str:
    """The first line of an error's text, which some libraries fill pages with; of a system's error, file and remedy."""
    if isinstance(error, OSError) and error.strerror:
        remedy = _REMEDIES.get(error.errno)
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{text}; {remedy}." if remedy else text
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # of a data loader's worker: its error is the last line
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {first}" if isinstance(error, LookupError | AttributeError) else first


def _is_lack_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )


def _is_failed_write(error: BaseException) -> bool:
    """Of weights: neither library raises an OSError."""
    text = str(error)
    return (type(error).__name__ == "SafetensorError" and "serializ" in text and "I/O" in text) or (
        isinstance(error, RuntimeError) and any(words in text for words in _WRITE_FAILED)
    )
