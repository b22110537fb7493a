"""What the documentation is made of holds together: links, spelling, what is pulled in from the source."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_detr
from site_tools import course, macros, notebook

from .pages import MARKDOWN, ROOT, blocks

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _prose(text: str) -> str:
    """Without blocks of code and code within lines."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE))


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", MARKDOWN)
def test_every_link_within_the_repository_resolves(page):
    path = ROOT / page
    for link in _LINK.findall(_prose(path.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", link) or link.endswith(".ipynb"):  # the notebook is made with the site
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{page}: {link}"
        assert file.is_file() or not page.startswith("docs/"), f"{page}: {link} is a folder, which the site cannot show"
        assert not anchor or anchor in _anchors(file), f"{page}: {link} has no such heading"


@pytest.mark.parametrize("page", [page for page in MARKDOWN if page not in ("docs/performance.md", "docs/results.md")])
def test_every_file_of_code_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / page).read_text(encoding="utf-8")):
        assert any((ROOT / folder / name).exists() for folder in ("", "src/hf_detr", "src/hf_detr/data", "tests")), (
            f"{page}: {name}"
        )


def test_spelling():
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "docs", "src", "examples", "benchmarks", *MARKDOWN],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", MARKDOWN)
def test_everything_a_page_pulls_in_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "{{" not in _prose(macros.expand(text))


@pytest.mark.parametrize(
    ("macro", "message"),
    [
        ("{{ nothing }}", "no macro 'nothing'"),
        ("{{ source loss.matcher.Absent }}", "Absent"),
        ('{{ source boxes.giou from="no such line" }}', "no line holds"),
        ('{{ table results.md "## Absent" }}', "has no line"),
    ],
)
def test_a_page_that_pulls_in_what_is_gone_does_not_build(macro, message):
    with pytest.raises(ValueError, match=message):
        macros.expand(macro)


def test_code_from_the_source_is_whole_and_without_its_docstring():
    code = macros.expand("{{ source boxes.cxcywh_to_xyxy }}")
    assert code.splitlines()[0] == '```python title="hf_detr/boxes.py"'
    assert "half_size" in code
    assert '"""' not in code


def test_a_chapter_keeps_its_output_and_shows_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "_CACHE", tmp_path / "cache")
    chapter = tmp_path / "1-a.md"
    chapter.write_text(
        "# A\n\n```python\nprint(6 * 7)\n```\n\n<!-- image: grey -->\n<!-- fold: How -->\n```python\n"
        "from PIL import Image\nImage.new('L', (3, 2))\n```\n\n```text\nnot run\n```\n"
    )
    for _ in range(2):  # run, then read from the cache
        found, images = course.run(chapter)
        page = course.render(found)
        assert "\n42\n```" in page
        assert "<summary>How</summary>" in page
        assert f"![grey]({next(iter(images))})" in page
        assert len(list((tmp_path / "cache").iterdir())) == len(images) == 1


def test_a_chapter_whose_code_fails_names_the_block(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "_CACHE", tmp_path / "cache")
    (tmp_path / "1-a.md").write_text("# A\n\n```python\n1 / 0\n```\n")
    with pytest.raises(RuntimeError, match=r"1-a\.md, block 1 does not run: ZeroDivisionError"):
        course.run(tmp_path / "1-a.md")


def test_the_first_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks("index.md", "python"):
        exec(block, {})
    assert (tmp_path / "detections.png").exists()


def test_the_command_line_reference_has_every_option(capsys):
    from hf_detr.cli.main import main

    page = macros.expand("{{ cli }}")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    for option in re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out):
        assert option in page


def test_the_reference_has_every_public_name():
    page = macros.expand((ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8"))
    shown = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    for name in set(hf_detr.__all__) - {"__version__", "DetrConfig", "DetrTrainingArguments"}:  # which have tables
        one = getattr(hf_detr, name)
        assert {f"{one.__module__}.{name}", one.__module__} & shown, name


def test_the_reference_shows_nothing_without_a_docstring():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, own_name = name.rpartition(".")
            found = getattr(importlib.import_module(module), own_name)
        assert found.__doc__, name


def test_the_notebooks_have_every_chapter_and_no_output():
    pages = {"course/understanding_detr.ipynb": course.chapters(), "fine_tuning.ipynb": [course.WALKTHROUGH]}
    for name, content in notebook.notebooks().items():
        cells = json.loads(content)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for page in pages[name]:
            assert page.read_text(encoding="utf-8").splitlines()[0] in text
        assert "{{" not in text
        assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images"), [("course/understanding_detr.ipynb", 12), ("fine_tuning.ipynb", 2)], ids=["course", "training"]
)
def test_the_notebooks_run_offline_from_top_to_bottom(name, images, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = nbformat.reads(notebook.notebooks()[name], as_version=4)
    nbformat.validate(content)
    NotebookClient(content, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [output.output_type for cell in content.cells for output in cell.get("outputs", [])]
    assert kinds.count("display_data") + kinds.count("execute_result") >= images
