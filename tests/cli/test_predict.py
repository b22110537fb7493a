import json
import re

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from hf_detr import DetrForObjectDetection, DetrImageProcessor

from .conftest import hf_detr, noise

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def predicted(model_dir, tmp_path_factory):
    """The finished command on files of all kinds, its output folder, and the folder of pictures."""
    pictures = tmp_path_factory.mktemp("pictures")
    (pictures / "below").mkdir()
    upright = noise(60, 40, seed=0)
    upright.save(pictures / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(pictures / "turned.png", exif=exif)
    noise(50, 70, seed=1).save(pictures / "below" / "upright.png")
    noise(30, 30, seed=2).convert("L").save(pictures / "grey.jpg")
    (pictures / "broken.jpg").write_bytes((pictures / "grey.jpg").read_bytes()[:200])
    (pictures / "notes.txt").write_text("no picture")
    output = tmp_path_factory.mktemp("predict") / "out"
    words = [pictures, f"{pictures}/*.png", pictures / "grey.jpg"]  # the same files several times over
    done = hf_detr("predict", model_dir, *words, "--output", output, "--threshold", THRESHOLD, "--batch-size", "3")
    rows = json.loads((output / "predictions.json").read_text())
    return done, output, pictures, rows


def of(rows, name):
    return [row for row in rows if row["file_name"].endswith(name)]


def test_a_corrupt_picture_is_named_skipped_counted_and_makes_exit_code_1(predicted):
    done, _, pictures, rows = predicted
    assert done.returncode == 1, done.stderr
    assert f"skipped: {pictures / 'broken.jpg'}" in done.stderr
    assert "1 skipped:" in done.stdout
    assert "4 pictures" in done.stdout
    assert re.search(r"the model waited for pictures \d+\.\d% of the time", done.stdout)
    assert not of(rows, "broken.jpg")


def test_predictions_are_those_of_the_model_in_pixels_of_each_picture(predicted, model_dir):
    _, _, pictures, rows = predicted
    model = DetrForObjectDetection.from_pretrained(model_dir).eval()
    processor = DetrImageProcessor.from_pretrained(model_dir)
    assert rows
    for name, size_hw in (
        ("/pictures0/upright.png", (40, 60)),
        ("below/upright.png", (70, 50)),
        ("grey.jpg", (30, 30)),
    ):
        found = of(rows, name.replace("/pictures0", f"/{pictures.name}"))
        inputs = processor(images=found[0]["file_name"], return_tensors="pt")
        with torch.no_grad():
            [expected] = processor.post_process_object_detection(model(**inputs), THRESHOLD, [size_hw])
        assert [row["category_id"] for row in found] == expected["labels"].tolist()
        assert [row["category"] for row in found] == [model.config.id2label[i] for i in expected["labels"].tolist()]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in found)]
        torch.testing.assert_close(torch.tensor(corners), expected["boxes"], atol=1e-3, rtol=0)


def test_a_picture_turned_by_exif_has_the_boxes_of_the_upright_one(predicted):
    _, output, pictures, rows = predicted
    upright, turned = of(rows, f"{pictures.name}/upright.png"), of(rows, "turned.png")
    assert upright
    for a, b in zip(upright, turned, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
    with Image.open(output / "turned.png") as drawn:
        assert drawn.width > drawn.height


def test_every_picture_is_drawn_once_under_a_name_of_its_own(predicted):
    _, output, _, _ = predicted
    names = sorted(path.name for path in output.iterdir())
    assert names == ["grey.jpg", "predictions.json", "turned.png", "upright.png", "upright_2.png"]


def test_predictions_json_is_what_coco_tools_load(predicted):
    _, output, _, rows = predicted
    truth = COCO()
    truth.dataset = {
        "images": [{"id": one} for one in range(1, 6)],
        "categories": [{"id": one, "name": str(one)} for one in range(3)],
        "annotations": [],
        "info": {},
    }
    truth.createIndex()
    assert len(truth.loadRes(str(output / "predictions.json")).getAnnIds()) == len(rows)
