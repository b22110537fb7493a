"""Every mistake of a user is one line that names what is wrong, and exit code 2."""

import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from hf_detr.checkpoints.files import written_whole
from hf_detr.cli.main import main
from hf_detr.training import last_checkpoint

from ..parity.golden_cases import GoldenCase
from .conftest import ENVIRONMENT, SOURCE, hf_detr, write_coco
from .wrong_inputs import WRONG, write_wrong_inputs

TRAIN = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu", "--augment", "none",
         "--image-size", "32", "--recipe", "paper"]  # fmt: skip


def run(capsys, *words) -> tuple[int, list[str]]:
    """Exit code of `hf-detr WORDS` in this process, and its lines on stderr but for warnings and bars."""
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:  # of argparse
        code = stop.code
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return code, [line for line in lines if line.strip() and ": warning: " not in line and "%|" not in line]


@pytest.fixture(scope="module")
def places(tmp_path_factory, model_dir):
    return write_wrong_inputs(tmp_path_factory.mktemp("wrong"), model_dir)


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(places, capsys, tmp_path, words):
    places = {**places, "new": str(tmp_path / "new")}
    code, lines = run(capsys, *words.format(**places).split())
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert re.match(r"hf-detr( \w+)?: error: ", lines[0])
    for part in WRONG[words]:
        assert part.format(**places) in lines[0]


@contextmanager
def full_disk(limit: int):
    """As if files could not grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("words", "limit", "file"),
    [
        ("evaluate {model} {coco} --json {out}/ap.json", 10, "ap.json"),
        ("evaluate {model} {coco} --results {out}/found.json", 10, "found.json"),
        ("check {coco} --json {out}/report.json", 10, "report.json"),
        ("check {coco} --draw {out}/sheet.png", 10, "sheet.png"),
        ("convert {pth} {out}/model", 10_000, "model"),
        ("train {coco} --output {out}/run --model {model}", 10, "run/run.json"),
        ("train {coco} --output {out}/run --model {model}", 10_000, "run"),
    ],
)
def test_a_full_disk_is_one_line_with_the_file_and_leaves_no_half_of_a_model(
    places, capsys, tmp_path, words, limit, file
):
    case = GoldenCase.read("resnet18_sine")
    torch.save({"model": case.weights()}, tmp_path / "r18.pth")
    filled = words.format(**places, out=tmp_path, pth=tmp_path / "r18.pth").split()
    with full_disk(limit):
        code, lines = run(capsys, *filled, *(TRAIN if filled[0] == "train" else ()))
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert str(tmp_path / file) in lines[0]
    assert "free some space" in lines[0] or "name another file" in lines[0]
    for folder in (tmp_path / "run", tmp_path / "model"):
        assert not (folder / "config.json").exists()
        assert last_checkpoint(folder) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from hf_detr.checkpoints import files
moves = 0
def replace(source, target, do=os.replace):
    global moves
    if moves == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    moves += 1
    do(source, target)
files.os.replace = replace
with files.written_whole(Path(sys.argv[1])) as folder:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_process_killed_while_it_writes_a_model_leaves_none_or_a_whole_one(tmp_path, moves):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(moves)], env=ENVIRONMENT, cwd=SOURCE)
    if (folder / "config.json").exists():
        assert {path.read_text() for path in folder.iterdir() if path.name != "README.md"} == {"new"}
        assert moves == 3
    with written_whole(folder) as again:
        (again / "config.json").write_text("newer")
    assert not list(folder.glob(".*"))  # what was left of the killed one
    assert (folder / "README.md").read_text() == "old"


def test_an_error_while_a_model_is_written_leaves_the_old_one(tmp_path):
    (tmp_path / "config.json").write_text("old")

    def write() -> None:
        with written_whole(tmp_path) as folder:
            (folder / "config.json").write_text("half of")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(monkeypatch):
    def fault(*_):
        raise KeyError("a fault of the program")

    monkeypatch.setattr("hf_detr.cli.check.run", fault)
    with pytest.raises(KeyError):
        main(["check", "x"])


OF_A_WORKER = "Caught X in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TypeError("'>' not supported between instances of 'str' and 'int'"), "data: '>' not supported"),
        (ValueError("could not convert string to float: 'x'"), "data: could not convert"),
        (MemoryError(), "not enough memory (MemoryError); take a smaller --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (
            RuntimeError("Caught X in DataLoader\nTraceback (most recent call last):\nRuntimeError: out of memory"),
            "memory",
        ),
        (OSError(28, "No space left on device"), "data: No space left on device; free some space"),
        (OSError(28, "No space left on device", "a.json"), "a.json: No space left on device; free some space"),
        (ValueError("first\nsecond"), "data: first\n"),
        (ValueError("data: first"), "error: data: first\n"),
        (ValueError("data: class \x1b[31m\udcff größe"), "error: data: class \\x1b[31m\\udcff größe\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bare_words_of_a_library_never_stand_alone(monkeypatch, capsys, error, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("hf_detr.cli.check.run", fail)
    assert main(["check", "data"]) == 2
    assert told in capsys.readouterr().err


def test_an_ascii_terminal_shows_names_of_all_scripts_and_bytes_that_are_no_text(tmp_path, model_dir):
    data = write_coco(tmp_path / "größe")
    listed = data / "annotations" / "instances_val2017.json"
    listed.write_text(listed.read_text().replace('"cat"', '"\\u732b\\u001b[31m"'))
    ascii_only = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = hf_detr("check", data, environment=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "\\u732b" in done.stdout
    done = hf_detr("evaluate", model_dir, data, environment=ascii_only)
    assert done.returncode == 2
    assert "gr\\xf6\\xdfe" in done.stderr or "\\u732b" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_whose_name_is_no_utf8_is_named(tmp_path, capsys):
    images = tmp_path / "images"
    (tmp_path / "labels").mkdir()
    images.mkdir()
    for name in (b"a.jpg", b"b.jpg", b"\xff.jpg"):
        Image.new("RGB", (40, 30), "red").save(
            os.path.join(os.fsencode(images), name).decode("utf-8", "surrogateescape")
        )
        (tmp_path / "labels" / os.fsdecode(name)).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "bad file name" in said
    assert "\\udcff.jpg: its name" in said
    code, lines = run(capsys, "train", tmp_path, "--output", tmp_path / "run", "--backbone", "test_resnet")
    assert code == 2
    assert "\\udcff.jpg" in lines[-1]
    assert main(["check", str(tmp_path), "--on-bad-image", "drop"]) == 0


def test_a_figure_that_cannot_be_drawn_costs_the_figure_alone(places, tmp_path, monkeypatch, capsys):
    found = []

    def fail(*_, **__):
        found.extend(path.name for path in (tmp_path / "run").iterdir())
        raise RuntimeError("no ink")

    monkeypatch.setattr("hf_detr.cli._run_folder.save_detections_grid", fail)
    with pytest.warns(UserWarning, match="predictions.png could not be drawn: no ink"):
        code, _ = run(capsys, "train", places["coco"], "--model", places["model"], "--output", tmp_path / "run", *TRAIN)
    assert code == 0
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "metrics.json"} < set(found)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "curves.png" in card
    assert "predictions.png" not in card


@pytest.mark.parametrize("option", ["--json", "--results"])
def test_evaluate_finds_out_where_it_can_write_before_it_measures(places, monkeypatch, option):
    monkeypatch.setattr("hf_detr.cli._running.load_model", lambda *_: pytest.fail("it measures"))
    assert main(["evaluate", places["model"], places["coco"], option, places["file_as_folder"]]) == 2


def test_a_file_that_is_there_is_left_alone_by_the_look_whether_it_can_be_written(places, tmp_path):
    (tmp_path / "ap.json").write_text("before")
    assert main(["evaluate", places["cut"], places["coco"], "--json", str(tmp_path / "ap.json")]) == 2
    assert (tmp_path / "ap.json").read_text() == "before"
    assert main(["evaluate", places["cut"], places["coco"], "--json", str(tmp_path / "new.json")]) == 2
    assert not (tmp_path / "new.json").exists()
