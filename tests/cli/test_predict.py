import json
import os
import re
import resource
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import hf_detr as package
from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.boxes import pairwise_iou, xywh_to_xyxy
from hf_detr.data.synthetic.digits import digit_scenes

from .conftest import COMMAND, ENVIRONMENT, assert_one_line_and_exit_code_2, hf_detr, hf_detr_here, noise

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def predicted(model_dir, tmp_path_factory):
    """The finished command on files of all kinds, its output folder, and the folder of images."""
    images = tmp_path_factory.mktemp("images")
    (images / "below").mkdir()
    upright = noise(60, 40, seed=0)
    upright.save(images / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(images / "turned.png", exif=exif)
    noise(50, 70, seed=1).save(images / "below" / "upright.png")
    noise(30, 30, seed=2).convert("L").save(images / "grey.jpg")
    (images / "broken.jpg").write_bytes((images / "grey.jpg").read_bytes()[:200])
    (images / "text.jpg").write_text("no image")
    (images / "._grey.jpg").write_text("what macOS leaves")
    (images / "notes.txt").write_text("no image")
    output = tmp_path_factory.mktemp("predict") / "out"
    words = [images, f"{images}/*.png", images / "grey.jpg"]  # the same files several times over
    done = hf_detr("predict", model_dir, *words, "--output", output, "--threshold", THRESHOLD, "--batch-size", "3")
    rows = json.loads((output / "predictions.json").read_text())
    return done, output, images, rows


def of(rows, name):
    return [row for row in rows if row["file_name"].endswith(name)]


def test_images_that_cannot_be_read_are_named_skipped_counted_and_make_exit_code_1(predicted):
    done, _, images, rows = predicted
    assert done.returncode == 1, done.stderr
    for name in ("broken.jpg", "text.jpg"):
        assert f"skipped: {images / name}: " in done.stderr
        assert f"\n  {images / name}: " in done.stdout
        assert not of(rows, name)
    assert "2 skipped:" in done.stdout
    assert "4 images" in done.stdout
    assert "._grey.jpg" not in done.stdout
    assert re.search(r"the model waited for images \d+\.\d% of the time", done.stdout)


def test_predictions_are_those_of_the_model_in_pixels_of_each_image_the_surest_first(predicted, model_dir):
    _, _, images, rows = predicted
    model = DetrForObjectDetection.from_pretrained(model_dir).eval()
    processor = DetrImageProcessor.from_pretrained(model_dir)
    assert rows
    for name, size_hw in (
        ("/images0/upright.png", (40, 60)),
        ("below/upright.png", (70, 50)),
        ("grey.jpg", (30, 30)),
    ):
        found = of(rows, name.replace("/images0", f"/{images.name}"))
        inputs = processor(images=found[0]["file_name"], return_tensors="pt")
        with torch.no_grad():
            [expected] = processor.post_process_object_detection(model(**inputs), THRESHOLD, [size_hw])
        order = expected["scores"].argsort(descending=True)
        labels = expected["labels"][order].tolist()
        assert [row["score"] for row in found] == pytest.approx(expected["scores"][order].tolist(), abs=1e-4)
        assert [row["category_id"] for row in found] == labels
        assert [row["category"] for row in found] == [model.config.id2label[label] for label in labels]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in found)]
        torch.testing.assert_close(torch.tensor(corners), expected["boxes"][order], atol=1e-3, rtol=0)


def test_an_image_turned_by_exif_has_the_boxes_of_the_upright_one(predicted):
    _, output, images, rows = predicted
    upright, turned = of(rows, f"{images.name}/upright.png"), of(rows, "turned.png")
    assert upright
    for a, b in zip(upright, turned, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
    with Image.open(output / "turned.png") as drawn:
        assert drawn.size == (60, 40)


def test_every_image_is_drawn_once_at_its_size_under_a_name_of_its_own(predicted):
    _, output, _, _ = predicted
    names = sorted(path.name for path in output.iterdir())
    assert names == ["grey.jpg", "predictions.json", "turned.png", "upright.png", "upright_2.png"]
    assert Image.open(output / "grey.jpg").size == (30, 30)


def test_drawings_are_enlarged_where_it_is_asked_for(predicted, model_dir, tmp_path, monkeypatch):
    _, _, images, _ = predicted
    assert not hf_detr_here(
        monkeypatch, "predict", model_dir, images / "grey.jpg", "--output", tmp_path / "out", "--enlarge"
    )
    assert Image.open(tmp_path / "out/grey.jpg").size == (660, 660)


def test_predictions_json_is_what_coco_tools_load(predicted):
    _, output, _, rows = predicted
    truth = COCO()
    truth.dataset = {
        "images": [{"id": one} for one in range(1, 7)],
        "categories": [{"id": one, "name": str(one)} for one in range(3)],
        "annotations": [],
        "info": {},
    }
    truth.createIndex()
    assert len(truth.loadRes(str(output / "predictions.json")).getAnnIds()) == len(rows)


def test_an_interrupt_keeps_what_was_found(model_dir, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(600):
        noise(8, 8, seed=number).save(images / f"{number}.png")
    words = ["predict", model_dir, images, "--output", output, "--threshold", "0", "--batch-size", "1"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that runs the tests in the background has told them to ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    results, seen = output / "predictions.json", 0
    while seen < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
        if results.exists() and results.stat().st_size:
            # stopped, as by a power cut: a reader beside a write may see half of it
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            seen = len({row["image_id"] for row in json.loads(results.read_text())})  # whole at any moment
            if seen >= 5:
                process.send_signal(signal.SIGINT)  # arrives as soon as it goes on
            process.send_signal(signal.SIGCONT)
    summary, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = {row["file_name"] for row in json.loads(results.read_text())}
    assert seen <= len(found) < 600
    assert f"{len(found):,} images, {len(found):,} of them with objects" in summary
    drawn = {path.name for path in output.glob("*.png")}
    assert {os.path.basename(name) for name in found} == drawn
    for name in drawn:
        Image.open(output / name).load()


def test_what_the_disk_has_no_room_for_costs_its_image_alone(model_dir, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(4):
        noise(40, 40, seed=number).save(images / f"{number}.png")
    noise(400, 400, seed=4).save(images / "4.png")
    words = ["predict", model_dir, images, "--output", output, "--threshold", "0", "--batch-size", "1"]
    done = subprocess.run(
        [*COMMAND, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads((output / "predictions.json").read_text())
    kept = {row["image_id"] for row in rows}
    assert 0 < len(kept) < 5
    assert f"{5 - len(kept)} not written:" in done.stdout
    assert f"{images / '4.png'}: " in done.stdout.partition("not drawn:")[2]
    assert sorted(path.name for path in output.glob("*.png")) == [f"{number}.png" for number in range(4)]


def test_a_folder_that_cannot_be_written_is_one_line_before_the_work(tmp_path, monkeypatch, capsys):
    noise(8, 8, seed=0).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')  # a model that could not be loaded
    words = [tmp_path, tmp_path / "a.png", "--output", tmp_path / "out", "--overwrite"]
    assert hf_detr_here(monkeypatch, "predict", *words) == 2
    assert re.search(r"error: .*predictions\.json: could not be written .* --output", capsys.readouterr().err)


def test_tiles_find_the_small_objects_of_a_large_image(tmp_path, monkeypatch):
    [row] = digit_scenes(1, image_size=480, max_objects=60, object_size=(16, 40), seed=3, split="test")
    row["image"].save(tmp_path / "large.png")
    truth = xywh_to_xyxy(torch.tensor(row["objects"]["bbox"], dtype=torch.float32))
    found = {}
    for name, words in (("whole", []), ("tiles", ["--tile", 96, "--overlap", "0.45"])):
        output = tmp_path / name
        words = [package.tiny_checkpoint(), tmp_path / "large.png", "--output", output, "--no-drawings", *words]
        assert not hf_detr_here(monkeypatch, "predict", *words)
        rows = json.loads((output / "predictions.json").read_text())
        boxes = xywh_to_xyxy(torch.tensor([one["bbox"] for one in rows]).reshape(-1, 4))
        same_class = torch.tensor(row["objects"]["category"])[:, None] == torch.tensor(
            [one["category_id"] for one in rows]
        )
        found[name] = ((pairwise_iou(truth, boxes) > 0.5) & same_class).sum(1)
    assert len(truth) > 20
    assert (found["whole"] > 0).float().mean() < 0.1
    assert (found["tiles"] > 0).float().mean() > 0.8
    assert (found["tiles"] > 1).float().mean() < 0.1  # each once


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--tile", "8"], "8 is not a side of at least 32"),
        (["--tile", "96", "--overlap", "0.95"], "0.95 is not between"),
        (["--overlap", "0.3"], "give their side with --tile"),
    ],
)
def test_impossible_tiles_are_one_line(tmp_path, words, part):
    done = hf_detr("predict", package.tiny_checkpoint(), tmp_path, *words)
    assert_one_line_and_exit_code_2(done, part)


def test_a_class_name_that_cannot_be_printed_is_escaped_where_it_is_seen_and_kept_in_json(
    tmp_path, monkeypatch, capsys
):
    model = DetrForObjectDetection.from_pretrained(package.tiny_checkpoint())
    names = {label: f"line\n{label}\u202e\x1b[31m" for label in range(10)}
    model.config.id2label, model.config.label2id = names, {name: label for label, name in names.items()}
    model.save_pretrained(tmp_path / "model")
    DetrImageProcessor.from_pretrained(package.tiny_checkpoint()).save_pretrained(tmp_path / "model")
    digit_scenes(1)[0]["image"].save(tmp_path / "two\nlines.png")
    assert not hf_detr_here(monkeypatch, "predict", tmp_path / "model", tmp_path, "--output", tmp_path / "out")
    seen = capsys.readouterr().out
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert rows
    assert rows[0]["category"].startswith("line\n")
    assert "\x1b" not in seen
    assert "line\\n" in seen
    assert np.asarray(Image.open(tmp_path / "out/two%0Alines.png")).shape == (96, 96, 3)
