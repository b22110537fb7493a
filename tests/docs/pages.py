"""The pages of the documentation, and what is in their blocks of code.

A block without a language holds commands, and `test_commands.py` runs every one of them, unless the line above it says
otherwise: `<!-- not run: why -->`, or `<!-- run by tests/FILE.py::test -->` where another test does.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / part / "README.md" for part in ("benchmarks", "examples")),
    )
)
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]+) -->\n)?^ *```(?P<language>\w*)[^\n]*\n(?P<content>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for commands), its content, and the comment on the line above it."""

    language: str
    content: str
    mark: str


def all_blocks(page: str) -> list[Block]:
    """Of a file of MARKDOWN."""
    found = _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    return [Block(match["language"], match["content"], match["mark"] or "") for match in found]


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The content of every fenced block of a language, of a page of docs/."""
    return [block.content for block in all_blocks(f"docs/{page}") if block.language == language]


def commands(content: str) -> list[list[str]]:
    """The words of every command of a block, without comments."""
    lines = re.sub(r"\\\n", " ", content)
    lines = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), lines).splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def links(page: str) -> list[str]:
    """Where its links lead, within the repository."""
    return re.findall(r"\]\((?!http)([^)#]+)", text(page))
