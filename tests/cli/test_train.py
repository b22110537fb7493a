import json
import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import torch
import yaml
from datasets import DatasetDict
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.synthetic.shapes import SHAPE_NAMES, shape_scenes

from .conftest import COMMAND, ENVIRONMENT, assert_one_line_and_exit_code_2, hf_detr, noise, write_coco

SHAPE = (
    "--backbone test_resnet --d-model 32 --heads 4 --ffn-dim 48 --encoder-layers 1 --decoder-layers 2 --num-queries 6"
)
FIGURES = ("predictions.png", "curves.png", "precision_recall.png", "confusion.png")
TINY = [*SHAPE.split(), "--image-size", "64", "--epochs", "4", "--batch-size", "2", "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def undisturbed(digits_dir, tmp_path_factory):
    """A finished training: the process and its run folder."""
    folder = tmp_path_factory.mktemp("runs") / "digits-detector"
    done = hf_detr("train", digits_dir, "--output", folder, *TINY)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_train_prints_the_data_first_one_bar_and_a_table_at_the_end(undisturbed):
    done, _ = undisturbed
    assert done.stdout.index("train: 8 images, ") < done.stdout.index("AP50 ")
    assert re.search(r"the model waited for data \d+\.\d% of the time", done.stdout)
    assert done.stdout.index("objects of class") < done.stdout.index("class ")
    bars = {line.split(":")[0] for line in done.stderr.replace("\n", "\r").split("\r") if "%|" in line}
    assert bars == {"train", "evaluate"}  # one bar, whose name says what it is doing
    assert all("/16 [" in line for line in done.stderr.replace("\n", "\r").split("\r") if "%|" in line)


def test_a_run_folder_holds_model_processor_numbers_pictures_and_card(undisturbed):
    _, folder = undisturbed
    DetrForObjectDetection.from_pretrained(folder)
    assert DetrImageProcessor.from_pretrained(folder).size == {"shortest_edge": 64, "longest_edge": 106}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 16
    assert 0 <= metrics["data_wait_share"] <= 1
    assert metrics["metrics"]["num_images"] == 3
    assert any("eval_map" in entry for entry in metrics["history"])
    for name in FIGURES:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["pipeline_tag"] == "object-detection"
    assert front["license"] == "apache-2.0"
    for needed in (
        "AP50",
        *FIGURES,
        "| train | 8 |",
        "4 (16 steps)",
        "test_resnet",
        "It runs in Transformers without further code",
        "pipeline(",
    ):
        assert needed in text


def test_a_run_folder_gives_our_boxes_in_stock_pipeline(undisturbed):
    _, folder = undisturbed
    stock = pipeline("object-detection", model=str(folder), device="cpu")
    assert type(stock.model).__module__.startswith("transformers.")
    model = DetrForObjectDetection.from_pretrained(folder).eval()
    processor = DetrImageProcessor.from_pretrained(folder)
    picture = noise(90, 60, seed=5)
    with torch.no_grad():
        outputs = model(**processor(images=picture, return_tensors="pt"))
    scores = outputs.logits.softmax(-1)[..., :-1].amax(-1).flatten().sort().values
    threshold = (scores[2] + scores[3]).item() / 2  # so that there are some, and not all
    [ours] = processor.post_process_object_detection(outputs, threshold, [(60, 90)])
    theirs = stock(picture, threshold=threshold)
    assert len(ours["scores"]) > 0
    assert sorted(one["label"] for one in theirs) == sorted(model.config.id2label[i] for i in ours["labels"].tolist())
    boxes = sorted(tuple(one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")) for one in theirs)
    for their_box, our_box in zip(boxes, sorted(map(tuple, ours["boxes"].tolist())), strict=True):
        assert their_box == pytest.approx(our_box, abs=1.001)  # the pipeline cuts to whole pixels


def test_ctrl_c_writes_a_checkpoint_and_the_command_it_prints_ends_with_the_undisturbed_weights(
    undisturbed, digits_dir, tmp_path
):
    folder = tmp_path / "stopped"
    words = [*COMMAND, "train", str(digits_dir), "--output", str(folder), *TINY]
    with subprocess.Popen(
        words,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "bar").open("wb"),
        text=True,
        start_new_session=True,
    ) as run:
        while not any(f" {step}/16 " in (tmp_path / "bar").read_text() for step in range(1, 16)):
            assert run.poll() is None, (tmp_path / "bar").read_text()
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does, to the data loader's worker as well
        printed = run.communicate(timeout=120)[0]
    assert run.returncode == 130, printed
    assert "a checkpoint is written" in printed
    assert not (folder / "model.safetensors").exists()

    program, *resume = shlex.split(printed.splitlines()[-1])
    assert program == "hf-detr"
    assert resume[-1] == "--resume"
    done = hf_detr(*resume)
    assert done.returncode == 0, done.stderr
    expected, found = (load_file(one / "model.safetensors") for one in (undisturbed[1], folder))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_run_folder_is_fine_tuned_on_other_classes_and_a_part_of_the_only_split_is_held_out(undisturbed, tmp_path):
    data, folder = tmp_path / "shapes", tmp_path / "run"
    DatasetDict(train=shape_scenes(6, image_size=64, max_objects=2, seed=1)).save_to_disk(data)
    words = [
        "--epochs",
        "1",
        "--workers",
        "0",
        "--augment",
        "none",
        "--ema",
        "0.5",
        "--hold-out",
        "0.3",
    ]
    done = hf_detr("train", data, "--output", folder, "--model", undisturbed[1], *words)
    assert done.returncode == 0, done.stderr
    assert "2 of the training images are held out as validation" in done.stdout
    config = DetrForObjectDetection.from_pretrained(folder).config
    assert list(config.id2label.values()) == list(SHAPE_NAMES)
    assert config.label2id == {name: index for index, name in enumerate(SHAPE_NAMES)}
    assert config.num_queries == 6
    card = (folder / "README.md").read_text()
    assert "| train | 4 |" in card
    assert "| validation | 2 |" in card
    assert "The best epoch was chosen on the same split" in card  # there is no test split
    assert "| started from | a local checkpoint |" in card
    assert str(folder.parent) not in card


def test_train_on_a_corrupt_image_stops_before_it_starts_and_names_it(tmp_path):
    data = write_coco(tmp_path / "coco")
    (data / "val2017" / "b.png").write_bytes(b"no picture")
    done = hf_detr("train", data, "--output", tmp_path / "run", *TINY)
    assert_one_line_and_exit_code_2(done, "1 problem in the data", "b.png", "hf-detr check")


def test_train_refuses_what_would_overwrite_or_change_a_run(undisturbed, digits_dir, tmp_path):
    _, folder = undisturbed
    done = hf_detr("train", digits_dir, "--output", folder, *TINY)
    assert_one_line_and_exit_code_2(done, "not empty", "--resume")
    done = hf_detr("train", digits_dir, "--output", tmp_path / "new", "--d-model", "32")
    assert_one_line_and_exit_code_2(done, "--d-model: only for a fresh model")
    done = hf_detr("train", digits_dir, "--output", folder, *TINY, "--resume", "--learning-rate", "3e-4")
    assert_one_line_and_exit_code_2(done, "learning_rate was 0.00071, now 0.0003")  # of 2 images a step
