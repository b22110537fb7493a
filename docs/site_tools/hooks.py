"""MkDocs' events: runs the course, fills in macros, brings the repository's files that pages link to into the site."""

import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from site_tools import course, macros, notebook

ROOT = Path(__file__).resolve().parents[2]
_OUTSIDE = re.compile(r"\]\(\.\./(?!course/|reference/|assets/)([^)#]+)(#[^)]*)?\)")  # links of top-level pages only
_rendered: dict[str, str] = {}


def on_config(config):
    """A page that the navigation does not name yet becomes one of the how-tos."""
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    others = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in named)
    how_to = next(section["How-to"] for section in config.nav if "How-to" in section)
    how_to += others
    return config


def on_files(files: Files, config):
    """Runs the chapters, whose images are files of the site, and adds what pages link to outside docs/."""
    _rendered.clear()
    for page in (*course.chapters(), course.WALKTHROUGH):
        blocks, images = course.run(page)
        folder = page.parent.relative_to(ROOT / "docs")
        _rendered[(folder / page.name).as_posix()] = course.render(blocks)
        for name, content in images.items():
            files.append(File.generated(config, (folder / name).as_posix(), content=content))
    for name, content in notebook.notebooks().items():
        files.append(File.generated(config, name, content=content))
    outside = {
        match[1]
        for page in files.documentation_pages()
        if "/" not in page.src_uri
        for match in _OUTSIDE.finditer(page.content_string)
    }
    for name in sorted(outside):
        files.append(File.generated(config, f"repository/{name}", content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page, config, files):
    """The page as it is shown."""
    markdown = _rendered.get(page.file.src_uri, markdown)
    if "/" not in page.file.src_uri:
        markdown = _OUTSIDE.sub(lambda match: f"](repository/{match[1]}{match[2] or ''})", markdown)
    return macros.expand(markdown)
