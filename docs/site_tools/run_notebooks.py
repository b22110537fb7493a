"""Runs the notebooks of the site from top to bottom and offline, each in an empty folder; stops with the error of the
first cell that fails. `make docs` does so beside the build of the site."""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from site_tools import notebook

LONGEST_S = 900  # of a cell, on a machine that has other work as well


def run(name: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook, with its outputs; `folder` is where it runs. Raises nbclient's CellExecutionError."""
    content = nbformat.reads(notebook.notebooks()[name], as_version=4)
    nbformat.validate(content)
    NotebookClient(content, timeout=LONGEST_S, resources={"metadata": {"path": str(folder)}}).execute()
    return content


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the site is built meanwhile
    for name in notebook.notebooks():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            run(name, Path(folder))
        print(f"{name}: ran in {time.monotonic() - begun:.0f} s", flush=True)
