"""Every command that a page shows runs, as it stands but for a shorter training, or says why it is not run."""

import argparse
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, DatasetDict, disable_progress_bars
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes, shape_scenes, tiny_checkpoint
from hf_detr.cli.main import _COMMANDS, main
from hf_detr.data.schema import id2label

from .pages import MARKDOWN, ROOT, all_blocks, blocks, commands

SHORTER = {
    r"--epochs \d+": "--epochs 1",
    r"--steps \d+": "--steps 1",
    r"--time-limit \w+": "--max-steps 3",
    r"--batch-size \d+": "--batch-size 4",
}
TRAINS = re.compile(r"hf-detr train|hf_detr.cli.main train|train_accelerate")
# What a page leaves for its reader to look at.
LEAVES = {
    "README.md": ("sheet.png", "runs/detector/README.md", "explained.html", "exported/model.onnx"),
    "docs/index.md": ("sheet.png", "runs/mine/README.md", "runs/mine/predictions.png", "found/predictions.json"),
    "docs/masks.md": ("found/panoptic/panoptic.json",),
}
SLOW = ("README.md", *(f"docs/{name}.md" for name in ("export", "fine-tuning", "index", "serve")))
SHOWN = {page: [block for block in all_blocks(page) if not block.language] for page in MARKDOWN}
RUN = {page: [block for block in shown if not block.mark] for page, shown in SHOWN.items()}
PAGES = [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page, shown in RUN.items() if shown]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which the reader of a page is."""
    disable_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def _furnish(shown: str) -> None:
    """Makes what the commands of a page name: data, images, a video, and a model where they make none themselves."""
    options = {"image_size": 96}
    if "DATA" in shown:
        _write_coco(Path("DATA/train"), shape_scenes(16, **options))
    if "scenes" in shown:
        splits = {"train": shape_scenes(12, **options), "validation": shape_scenes(4, seed=1, **options)}
        DatasetDict(**splits, test=shape_scenes(4, split="test", **options)).save_to_disk("scenes")
    for task in {"instance", "panoptic"} & set(re.findall(r"(?:check|train) (\w+)", shown)):
        splits = {split: digit_scenes(4, split=split, task=task) for split in ("train", "test")}
        DatasetDict(splits).save_to_disk(task)
    photographs = shape_scenes(3, split="test", seed=2, **options)["image"][:]
    for name in {"IMAGES", "images"} & set(re.findall(r"\w+", shown)):
        Path(name).mkdir()
        for number, image in enumerate(photographs):
            image.save(f"{name}/{number}.png")
    for name in re.findall(r"[\w-]+\.(?:jpg|tif)|scene\.png", shown):
        photographs[0].resize((700, 650) if name.endswith("tif") else (120, 90)).save(name)
    if "clip.mp4" in shown:
        _film(photographs)
    shutil.copytree(tiny_checkpoint(), "facebook/detr-resnet-50")  # the Hub's name is a folder here
    for run in set(re.findall(r"runs/\w+", shown)) - set(re.findall(r"--output (\S+)", shown)):
        names = id2label(shape_scenes(1))
        DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=names).save_pretrained(run)
        DetrImageProcessor.from_pretrained(tiny_checkpoint()).save_pretrained(run)


def _write_coco(folder: Path, rows: Dataset) -> None:
    """A folder of images with their annotations, as a reader has it."""
    folder.mkdir(parents=True)
    names = rows.features["objects"]["category"].feature.names
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}
    for row in rows:
        name, objects = f"{row['image_id']}.png", row["objects"]
        row["image"].save(folder / name)
        content["images"].append({"id": row["image_id"], "file_name": name, "width": 96, "height": 96})
        for box, category in zip(objects["bbox"], objects["category"], strict=True):
            known = {"id": len(content["annotations"]), "image_id": row["image_id"], "iscrowd": 0}
            content["annotations"].append({**known, "bbox": box, "category_id": category, "area": box[2] * box[3]})
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def _film(images: list[Image.Image]) -> None:
    import av

    with av.open("clip.mp4", "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 96
        for image in images:
            video.mux(stream.encode(av.VideoFrame.from_image(image)))
        video.mux(stream.encode())


def _serve(words: list[str], running: contextlib.ExitStack) -> int:
    """Starts a server, which has to end well when the page does, and asks for its first page."""
    command = [sys.executable, "-m", "hf_detr.cli.main", *words]
    server = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def stop() -> None:
        server.terminate()
        assert server.wait() == 0

    running.callback(stop)
    address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\w.:]+", line)))
    with urllib.request.urlopen(address) as first:
        return 0 if "text/html" in first.headers["Content-Type"] else 1


def _run(words: list[str], variables: dict[str, str], running: contextlib.ExitStack) -> int:
    """A command as the shell would run it, in this process if it can; its exit code."""
    assignment = re.fullmatch(r"(\w+)=\$\(python -c (.+)\)", " ".join(words))
    if assignment:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(assignment[2], {})
        variables[assignment[1]] = printed.getvalue().strip()
        return 0
    words = [variables[word[1:]] if word.startswith("$") else word for word in words]
    if words[0] in ("torchrun", "accelerate"):
        module = "torch.distributed.run" if words[0] == "torchrun" else "accelerate.commands.launch"
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words if word != "launch"]
        return subprocess.run([sys.executable, "-m", module, *words[1:]]).returncode
    if words[0] == "curl":
        return subprocess.run(["curl", "--fail", *words[1:]]).returncode
    if words[:2] == ["hf-detr", "serve"] and "--write-space" not in words:
        return _serve(words[1:], running)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if words[0] == "hf-detr":
        return main(words[1:])
    assert words[0] == "python", words
    if words[1] == "exported/inference.py":  # which needs no torch
        alone = "import runpy, sys; sys.modules['torch'] = None; sys.argv.pop(0); "
        alone += "runpy.run_path(sys.argv[0], run_name='__main__')"
        return subprocess.run([sys.executable, "-c", alone, *words[1:]]).returncode
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    return 0


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_their_order(page, folder):
    shown = "\n".join(block.content for block in RUN[page])
    _furnish(shown)
    if "train.py" in shown:
        block = next(block for block in blocks("fine-tuning.md", "python") if "DetrTrainer(" in block)
        Path("train.py").write_text(block.replace("num_train_epochs=2", "max_steps=2, use_cpu=True"))
    variables: dict[str, str] = {}
    with contextlib.ExitStack() as running:
        for words in [words for block in RUN[page] for words in commands(block.content)]:
            line = shlex.join(words)
            for long, short in SHORTER.items():
                line = re.sub(long, short, line)
            line += " --workers 0" if TRAINS.search(line) else ""
            assert _run(shlex.split(line), variables, running) == 0, words
    for name in LEAVES.get(page, ()):
        assert Path(name).exists(), name
        assert Path(name).name != "README.md" or "AP50" in Path(name).read_text(encoding="utf-8")  # a model card


@pytest.mark.parametrize("page", MARKDOWN)
def test_a_command_that_a_page_does_not_run_says_why_or_where_it_is(page):
    for block in SHOWN[page]:
        if not block.mark:
            continue
        reason = re.fullmatch(r"not run: (\S+ \S+.*)", block.mark)
        elsewhere = re.fullmatch(r"run by (tests/[\w/]+\.py)::(test_\w+).*", block.mark)
        assert reason or elsewhere, f"{page}: {block.mark}"
        if elsewhere:
            assert f"def {elsewhere[2]}(" in (ROOT / elsewhere[1]).read_text(encoding="utf-8"), block.mark


def _options(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"hf_detr.cli.{command}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("page", MARKDOWN)
def test_a_command_has_the_options_with_which_a_page_shows_it(page):
    """In a line of text as in a block, whether it is run or not."""
    written = (ROOT / page).read_text(encoding="utf-8")
    inline = re.findall(r"`(hf-detr [^`]+)`", re.sub(r"^ *```.*?^ *```$", "", written, flags=re.S | re.M))
    shown = [shlex.join(words) for block in SHOWN[page] for words in commands(block.content)]
    for line in inline + [line for line in shown if line.startswith("hf-detr ")]:
        command = re.match(r"hf-detr ([a-z]\w*)", line)
        if command:
            assert command[1] in _COMMANDS, line
            assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)) <= _options(command[1]), line
