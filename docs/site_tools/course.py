"""Chapters of the course: Markdown whose blocks of Python run, and whose output and images stand below them.

What a block prints becomes its output. An image that its last line names is shown, and every figure that matplotlib
holds, with the text of a comment `<!-- image: ... -->` before the block as its alternative text. A comment
`<!-- fold: ... -->` before a block hides its code behind that line. Results are kept in `.cache/docs`, by the content
of chapter and package.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "docs" / "course"
WALKTHROUGH = ROOT / "docs" / "walkthrough.md"
_CACHE = ROOT / ".cache" / "docs"
_BLOCK = re.compile(
    r"^(?:<!-- image: (?P<image>[^\n]+?) -->\n)?(?:<!-- fold: (?P<fold>[^\n]+?) -->\n)?```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Block:
    """A part of a chapter: text, or code with what came of it."""

    text: str = ""
    code: str = ""
    image: str = ""
    fold: str = ""
    output: str = ""
    files: list[str] = field(default_factory=list)


def chapters() -> list[Path]:
    """The chapters' files in order."""
    return sorted(CHAPTERS.glob("[0-9]*.md"))


def split(markdown: str) -> list[Block]:
    """Text and code of a chapter in turns."""
    blocks, end = [], 0
    for match in _BLOCK.finditer(markdown):
        blocks.append(Block(text=markdown[end : match.start()].strip()))
        blocks.append(Block(**{name: match[name] or "" for name in ("code", "image", "fold")}))
        end = match.end()
    blocks.append(Block(text=markdown[end:].strip()))
    return [block for block in blocks if block.text or block.code]


def run(path: Path) -> tuple[list[Block], dict[str, bytes]]:
    """The chapter's blocks with their output, and its images by file name; from the cache if nothing has changed."""
    text = path.read_text(encoding="utf-8")
    folder = _CACHE / f"{path.stem}-{_key(text)}"
    record = folder / "blocks.json"
    if record.exists():
        blocks = [Block(**fields) for fields in json.loads(record.read_text(encoding="utf-8"))]
        return blocks, {name: (folder / name).read_bytes() for block in blocks for name in block.files}
    blocks, images = split(text), {}
    _execute(path, blocks, images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    record.write_text(json.dumps([asdict(block) for block in blocks], indent=1), encoding="utf-8")
    return blocks, images


def render(blocks: list[Block]) -> str:
    """The chapter as one page of Markdown."""
    return "\n\n".join(block.text or _rendered(block) for block in blocks) + "\n"


def _rendered(block: Block) -> str:
    code = f"```python\n{block.code}```"
    if block.fold:
        code = f'<details markdown="1">\n<summary>{block.fold}</summary>\n\n{code}\n\n</details>'
    parts = [code]
    if block.output:
        parts.append(f"``` {{ .text .output }}\n{block.output.rstrip()}\n```")
    parts += [f"![{block.image}]({name})" for name in block.files]
    return "\n\n".join(parts)


def _key(text: str) -> str:
    import torch

    digest = hashlib.sha256(f"{text}{torch.__version__}".encode())
    package = ROOT / "src" / "hf_detr"
    for file in sorted((*package.rglob("*.py"), *(package / "assets").rglob("*"), Path(__file__))):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _execute(path: Path, blocks: list[Block], images: dict[str, bytes]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import torch
    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    torch.manual_seed(0)
    names: dict = {"__name__": path.stem}
    directory = os.getcwd()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # what a page writes goes with it
            for number, block in enumerate(blocks):
                if block.code:
                    _run_block(block, f"{path.name}, block {number}", names)
                    _collect(block, names, f"{path.stem}-{number}", images)
    finally:
        os.chdir(directory)
        torch.set_num_threads(before)


def _run_block(block: Block, where: str, names: dict) -> None:
    tree = ast.parse(block.code, where)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    names["_"] = None
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, where, "exec"), names)
            if last is not None:
                names["_"] = eval(compile(ast.Expression(last.value), where, "eval"), names)
    except Exception as error:
        raise RuntimeError(f"{where} does not run: {type(error).__name__}: {error}\n{block.code}") from error
    block.output = printed.getvalue()


def _collect(block: Block, names: dict, stem: str, images: dict[str, bytes]) -> None:
    from matplotlib import pyplot
    from PIL import Image

    shown = [names["_"]] if isinstance(names["_"], Image.Image) else []
    shown += [pyplot.figure(number) for number in pyplot.get_fignums()]
    for index, image in enumerate(shown):
        name, content = f"{stem}{'-' + str(index) if index else ''}.png", io.BytesIO()
        if isinstance(image, Image.Image):
            image.save(content, "PNG", optimize=True)
        else:
            image.savefig(content, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        block.files.append(name)
        images[name] = content.getvalue()
    pyplot.close("all")
    if block.files and not block.image:
        raise RuntimeError(f"{stem} shows an image without a text for it: put <!-- image: ... --> before its block.")
