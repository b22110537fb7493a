import io
import json
import struct
import threading
import zlib

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from hf_detr import DetrForObjectDetection
from hf_detr.cli.main import main
from hf_detr.serving.api import create_api
from hf_detr.serving.limits import Refused

from ..small_models import small_model, small_segmenter
from .conftest import TINY, encoded, open_detector


def client_of(detector, threshold=0.5) -> TestClient:
    return TestClient(create_api(detector, dict.fromkeys(detector.id2label, threshold)), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def client(detector) -> TestClient:
    return client_of(detector)


def send(client, *contents, **form):
    files = [("image", (f"{number}.png", content)) for number, content in enumerate(contents)]
    return client.post("/detect", files=files, data=form)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def assert_same(rows, others) -> None:
    assert [row["category"] for row in rows] == [row["category"] for row in others]
    for name in ("bbox", "score"):
        pair = (torch.tensor([row[name] for row in some], dtype=torch.float64) for some in (rows, others))
        torch.testing.assert_close(*pair, atol=2e-4, rtol=1e-5)


def test_detect_finds_what_predict_finds_and_what_each_image_gives_alone(client, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, scene in enumerate(scenes):
        scene.save(f"{number}.png")
    files = [f"{number}.png" for number in range(len(scenes))]
    words = ["--no-drawings", "--device", "cpu", "--threshold", "0.3", "--output", "found"]
    assert main(["predict", str(TINY), *files, *words]) == 0
    predicted = json.loads((tmp_path / "found" / "predictions.json").read_text())

    together = send(client, *map(encoded, scenes), threshold="0.3").json()
    assert together["model"] == "tiny"
    assert [one["file_name"] for one in together["images"]] == files
    for image, file, scene in zip(together["images"], files, scenes, strict=True):
        assert (image["width"], image["height"]) == scene.size
        assert image["detections"]
        assert_same(image["detections"], [row for row in predicted if row["file_name"] == file])
        [alone] = send(client, encoded(scene), threshold="0.3").json()["images"]
        assert_same(image["detections"], alone["detections"])


def test_an_image_is_upright_and_of_any_mode_and_format(client, scenes):
    rotated = scenes[0].transpose(Image.Transpose.ROTATE_90)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn it back to see it
    rotated.save(buffer, "png", exif=exif)
    [[turned], [plain]] = (send(client, one).json()["images"] for one in (buffer.getvalue(), encoded(scenes[0])))
    assert_same(turned["detections"], plain["detections"])
    for mode, kind in (("L", "tiff"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpeg"), ("I;16", "png"), ("1", "bmp")):
        image = scenes[0].convert("I").convert(mode) if mode == "I;16" else scenes[0].convert(mode)
        assert send(client, encoded(image, kind)).status_code == 200, mode


def test_what_is_no_image_or_beyond_the_limits_is_refused_in_a_sentence_that_names_it(scenes):
    good = encoded(scenes[0])
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    cases = [
        (b"", 422, "empty"),
        (b"words", 422, "not an image"),
        (eps, 422, "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 422, "not an image"),
        (good[: len(good) // 2], 422, "damaged"),
        (encoded(Image.new("RGB", (300, 200)), "jpeg")[:700], 422, ""),
        (encoded(Image.new("RGB", (301, 400))), 413, "301 x 400 pixels"),
        (bomb(9_000, 9_000), 413, "9,000 x 9,000 pixels"),
        (bomb(60_000, 60_000), 413, "pixels"),
        (good + b"\0" * 60_000, 413, "MiB"),
    ]
    with open_detector(image_px=300 * 400, image_bytes=60_000, images=3) as detector:
        client = client_of(detector)
        for content, status, words in cases:
            answer = send(client, good, content)
            assert (answer.status_code, list(answer.json())) == (status, ["detail"]), words
            detail = answer.json()["detail"]
            assert detail.startswith("1.png: ")
            assert detail.endswith(".")
            assert words in detail
        many = send(client, good, good, good, good)
        assert (many.status_code, many.json()["detail"]) == (413, "4 images at once; send at most 3.")
        assert send(client, good).status_code == 200


def test_a_wrong_or_missing_value_is_a_sentence(client, scenes):
    for threshold in ("2", "nan", "much"):
        answer = send(client, encoded(scenes[0]), threshold=threshold)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("threshold: ")
    answer = client.post("/detect", data={"threshold": "0.5"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "image: Field required.")


def test_a_body_beyond_the_limit_is_not_kept_whether_its_length_is_declared_or_not():
    with open_detector(image_bytes=1000, images=1) as detector:
        client, whole = client_of(detector), b"x" * 2**21
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for content in (head + whole, iter([head, whole[: 2**20], whole])):
            answer = client.post(
                "/detect", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
            assert answer.status_code == 413
            assert "too long" in answer.json()["detail"]


def test_a_model_with_nan_gives_an_error_and_no_detection(scenes):
    model = small_model(num_labels=3)
    with torch.no_grad():
        model.class_labels_classifier.weight[0, 0] = torch.nan
    with open_detector(model) as detector:
        answer = send(client_of(detector, 0.0), encoded(scenes[0]))
        assert answer.status_code == 500
        assert "NaN" in answer.json()["detail"]
        assert list(answer.json()) == ["detail"]


def test_an_image_that_the_model_fails_on_costs_no_other_of_its_batch(scenes):
    model = DetrForObjectDetection.from_pretrained(TINY).eval()
    begin = threading.Event()

    def fail_on_white(_module, args, outputs):
        begin.wait(30)
        outputs.logits[args[0].flatten(1).amin(1) > 1] = torch.inf

    model.register_forward_hook(fail_on_white)
    white = Image.new("RGB", scenes[0].size, "white")
    with open_detector(model) as detector:
        thresholds = dict.fromkeys(detector.id2label, 0.5)
        files = [(io.BytesIO(encoded(one)), "x.png") for one in (scenes[0], scenes[1], white, scenes[2])]
        futures = detector.submit(files, thresholds)
        begin.set()
        assert all(futures[i].result(30).rows for i in (0, 1, 3))
        with pytest.raises(Refused, match=r"x\.png: the model's outputs hold a NaN"):
            futures[2].result(30)


def test_a_full_queue_says_so_and_has_room_again_when_it_is_done(scenes):
    model, begin = DetrForObjectDetection.from_pretrained(TINY).eval(), threading.Event()
    model.register_forward_pre_hook(lambda *_: begin.wait(30) and None)
    content = encoded(scenes[0])
    with open_detector(model, queue=3) as detector:
        client, thresholds = client_of(detector), dict.fromkeys(detector.id2label, 0.5)
        futures = detector.submit([(io.BytesIO(content), "a.png")] * 2, thresholds)
        answer = send(client, content, content)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == "The server is busy: its queue is full. Try again in a moment."
        begin.set()
        for future in futures:
            future.exception(30)
        for _ in range(3):
            assert send(client, content, content).status_code == 200


@pytest.mark.parametrize("stuff", [None, [2]], ids=["instance", "panoptic"])
def test_masks_are_those_of_predict(tmp_path, scenes, stuff, monkeypatch):
    model = small_segmenter(num_labels=3, label_ids_to_fuse=stuff)
    with open_detector(model) as detector:
        model.save_pretrained(tmp_path / "model")
        detector.processor.save_pretrained(tmp_path / "model")
        scenes[0].save(tmp_path / "0.png")
        monkeypatch.chdir(tmp_path)
        words = ["--no-drawings", "--device", "cpu", "--threshold", "0.3", "--output", "found"]
        assert main(["predict", "model", "0.png", *words]) == 0
        predicted = json.loads((tmp_path / "found" / "predictions.json").read_text())
        [image] = send(client_of(detector), encoded(scenes[0]), threshold="0.3").json()["images"]
    assert image["detections"]
    assert_same(image["detections"], predicted)
    masks = ([row["segmentation"] for row in rows] for rows in (image["detections"], predicted))
    assert next(masks) == next(masks)


def test_the_endpoint_is_described(client):
    description = client.get("/openapi.json").json()
    answers = description["paths"]["/detect"]["post"]["responses"]
    assert set(answers) == {"200", "413", "422", "500", "503"}
    assert "bbox" in description["components"]["schemas"]["Row"]["properties"]
