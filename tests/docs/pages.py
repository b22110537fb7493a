"""The pages of docs/, and what is in their blocks of code."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[str]:
    """The content of every fenced block of a language; "" for those that name none."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text(page), re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def commands(page: str) -> list[list[str]]:
    """The words of every command of its blocks, without comments."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def links(page: str) -> list[str]:
    """Where its links lead, within the repository."""
    return re.findall(r"\]\((?!http)([^)#]+)", text(page))
