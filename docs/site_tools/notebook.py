"""Pages whose code runs, as Jupyter notebooks: `python docs/site_tools/notebook.py FOLDER` writes them."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from site_tools import course, macros

_COURSE = """# Understanding DETR

The course of hf_detr's documentation, to run and to change: from top to bottom, offline, in a few minutes on a CPU. It
needs `pip install "hf-detr[train]"` and Jupyter."""


def notebooks() -> dict[str, str]:
    """Where in the site each notebook lies -> its file."""
    return {
        "course/understanding_detr.ipynb": _notebook(course.chapters(), _COURSE),
        "fine_tuning.ipynb": _notebook([course.WALKTHROUGH]),
    }


def _notebook(pages: list[Path], title: str = "") -> str:
    """Without outputs; the same for the same pages and package."""
    cells = [_markdown(title)] if title else []
    for page in pages:
        for block in course.split(page.read_text(encoding="utf-8")):
            cells.append(_code(block.code) if block.code else _markdown(_without_links(macros.expand(block.text))))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip().splitlines(keepends=True)}


def _code(code: str) -> dict:
    source = code.strip().splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


def _without_links(text: str) -> str:
    """Links to other pages become their words: a notebook is read anywhere."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text)


if __name__ == "__main__":
    for name, content in notebooks().items():
        Path(sys.argv[1], Path(name).name).write_text(content, encoding="utf-8")
