"""`hf-detr train` with a teacher, and with images that it labels."""

import json
import shutil

import pytest
from PIL import Image

from hf_detr import DetrImageProcessor
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import id2label
from hf_detr.training.teacher import Teacher

from ..small_models import small_model, with_statistics
from .conftest import hf_detr_here, noise


@pytest.fixture
def teacher_dir(tmp_path, digits_dir):
    """A small detector of random weights that knows the digits."""
    names = id2label(load_detection_dataset(digits_dir))
    model = small_model(id2label=names, label2id={name: index for index, name in names.items()}, num_labels=len(names))
    with_statistics(model, seed=5).save_pretrained(tmp_path / "teacher")
    DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_train_with_a_teacher_and_images_without_annotations(
    teacher_dir, digits_dir, model_dir, tmp_path, monkeypatch, capsys
):
    folder, names = tmp_path / "more", id2label(load_detection_dataset(digits_dir))
    folder.mkdir()
    for seed in range(3):
        noise(64, 48, seed).save(folder / f"{seed}.png")
    teacher = Teacher(str(teacher_dir), names)
    best = [
        teacher.look([Image.open(folder / f"{seed}.png")], [0]).probabilities[0, :, :-1].amax().item()
        for seed in range(3)
    ]
    low, middle, _ = sorted(best)
    threshold = round((low + middle) / 2, 6)  # the surest two have a label each
    words = ["train", digits_dir, "--model", model_dir, "--output", tmp_path / "run", "--max-steps", 2, "--workers", 0]
    words += ["--batch-size", 2, "--device", "cpu", "--teacher", teacher_dir, "--unlabelled", folder]
    assert hf_detr_here(monkeypatch, *words, "--unlabelled-threshold", threshold) == 0
    said = capsys.readouterr().out
    assert f"--unlabelled {folder}, labelled by {teacher_dir}: 2 images with " in said
    assert "left out: 1 image in which nothing was found" in said
    assert "train_dataset: 10 images" in said  # with the eight annotated ones
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["teacher"], settings["unlabelled"]) == (str(teacher_dir), str(folder))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["unlabelled"]["images"], metrics["unlabelled"]["empty"]) == (2, 1)
    assert all("loss_teacher" in entry for entry in metrics["history"] if "loss" in entry)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| teacher | a local checkpoint |" in card
    assert "| labelled by the teacher | 2 images with " in card


def test_a_teacher_or_images_that_are_not_there_are_refused_in_one_line(
    teacher_dir, digits_dir, model_dir, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    bare = shutil.copytree(teacher_dir, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    train = ["train", digits_dir, "--model", model_dir, "--device", "cpu", "--max-steps", 1, "--no-check"]
    for words, part in (
        (["--teacher", tmp_path / "none"], f"{tmp_path / 'none'}: no such file or folder"),
        (["--teacher", bare], f"teacher {bare}: it has no image processor"),
        (["--unlabelled", tmp_path / "empty"], "images are labelled by a --teacher; name one"),
        (
            ["--teacher", teacher_dir, "--unlabelled", tmp_path / "no"],
            f"--unlabelled {tmp_path / 'no'}: no such folder",
        ),
        (["--teacher", teacher_dir, "--unlabelled", tmp_path / "empty"], "no image in this folder or below"),
        (["--teacher", teacher_dir, "--freeze-detector"], "--teacher tells of boxes"),
        (["--teacher", model_dir], "none of its classes (bird, dog, cat) has the name of one of the student's (zero"),
    ):
        assert hf_detr_here(monkeypatch, *train, "--output", tmp_path / "run", *words) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert part in line
