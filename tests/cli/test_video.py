"""Videos in, videos with boxes and JSON by frame out."""

import json
import weakref
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.cli import _video
from hf_detr.cli._predict_run import PredictRun
from hf_detr.cli._prediction import Predictor
from hf_detr.cli._video import FrameReader, VideoWriter

from .conftest import hf_detr, hf_detr_here, noise

SIZE_WH = (64, 48)
TIMES_S = [0.0, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8]  # not all alike


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = VideoWriter(path, Fraction(10))
    for number, time_s in enumerate(TIMES_S):
        writer.write(noise(8, 6, number).resize(SIZE_WH), time_s)
    writer.close()
    return path


@pytest.fixture(scope="module")
def predicted(clip, model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "found"
    done = hf_detr("predict", model_dir, clip, "--output", folder, "--threshold", 0.3, "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_json_has_every_frame_with_its_number_time_and_detections(predicted, clip, model_dir):
    _, folder = predicted
    entries = json.loads((folder / "clip.json").read_text())
    assert [entry["frame"] for entry in entries] == list(range(7))
    assert [entry["time_s"] for entry in entries] == pytest.approx(TIMES_S, abs=1e-4)
    model = DetrForObjectDetection.from_pretrained(model_dir).eval()
    processor = DetrImageProcessor.from_pretrained(model_dir)
    for entry, frame in zip(entries, FrameReader(clip), strict=True):
        inputs = processor(images=frame.image, return_tensors="pt")
        with torch.no_grad():
            [expected] = processor.post_process_object_detection(model(**inputs), 0.3, [SIZE_WH[::-1]])
        scores = [row["score"] for row in entry["detections"]]
        assert scores == pytest.approx(expected["scores"].sort(descending=True).values.tolist(), abs=1e-4)
        assert all(set(row) == {"category_id", "category", "bbox", "score"} for row in entry["detections"])
    assert any(entry["detections"] for entry in entries)


def test_the_drawn_video_has_the_frames_of_the_original_at_its_size_with_boxes(predicted, clip):
    _, folder = predicted
    assert sorted(path.name for path in folder.iterdir()) == ["clip.json", "clip.mp4"]
    entries = json.loads((folder / "clip.json").read_text())
    drawn, original = list(FrameReader(folder / "clip.mp4")), list(FrameReader(clip))
    assert [frame.time_s for frame in drawn] == pytest.approx(TIMES_S, abs=1e-4)
    for entry, new, old in zip(entries, drawn, original, strict=True):
        assert new.image.shape == old.image.shape == (3, *SIZE_WH[::-1])
        difference = (new.image.float() - old.image.float()).abs().mean().item()
        assert (difference > 5) == bool(entry["detections"])


def test_the_summary_counts_frames(predicted):
    done, _ = predicted
    assert "7 frames, " in done.stdout


def test_a_damaged_video_gives_what_was_before_and_one_that_is_none_is_skipped(
    clip, model_dir, tmp_path, monkeypatch, capsys
):
    content = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(0.7 * len(content))])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    videos = [tmp_path / "none.mp4", tmp_path / "cut.mp4", clip]
    words = [model_dir, *videos, "--output", tmp_path / "out", "--no-drawings"]
    assert hf_detr_here(monkeypatch, "predict", *words) == 1
    summary = capsys.readouterr().out
    assert "1 skipped:" in summary
    assert f"{tmp_path / 'none.mp4'}: could not be opened as a video" in summary
    assert len(json.loads((tmp_path / "out/clip.json").read_text())) == 7
    assert len(json.loads((tmp_path / "out/cut.json").read_text())) < 7
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_an_interrupt_keeps_the_frames_so_far(clip, model_dir, tmp_path, monkeypatch):
    counted = []

    def count(self, rows):
        counted.append(rows)
        if len(counted) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(PredictRun, "_count", count)
    assert hf_detr_here(monkeypatch, "predict", model_dir, clip, "--output", tmp_path / "out") == 130
    entries = json.loads((tmp_path / "out/clip.json").read_text())
    assert [entry["frame"] for entry in entries] == [0, 1, 2, 3]
    assert len(list(FrameReader(tmp_path / "out/clip.mp4"))) == 3  # those that were counted


def test_a_video_that_cannot_be_written_costs_its_drawing_alone(clip, model_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "out/clip.mp4").mkdir(parents=True)
    words = [model_dir, clip, "--output", tmp_path / "out", "--overwrite"]
    assert hf_detr_here(monkeypatch, "predict", *words) == 1
    assert "1 not drawn:" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out/clip.json").read_text())) == 7


def test_a_webcam_is_read_like_a_file(monkeypatch, clip):
    asked = []

    def open_container(name, format=None):
        asked.append((name, format))
        return av.open(clip)

    monkeypatch.setattr(_video, "av", SimpleNamespace(open=open_container, FFmpegError=av.FFmpegError))
    for platform, expected in (("linux", ("/dev/video2", "v4l2")), ("darwin", ("2:none", "avfoundation"))):
        monkeypatch.setattr(_video.sys, "platform", platform)
        assert len(list(FrameReader(2))) == 7
        assert asked.pop() == expected
    monkeypatch.setattr(_video.sys, "platform", "win32")
    with pytest.raises(ValueError, match="webcam 2: read on Linux and macOS only"):
        FrameReader(2)


def test_a_webcam_that_is_not_there_is_named(model_dir, tmp_path, monkeypatch, capsys):
    assert hf_detr_here(monkeypatch, "predict", model_dir, "97", "--output", tmp_path / "out") == 1
    assert "webcam 97: could not be opened" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (2, 2)])
def test_a_video_of_any_size_is_written_at_that_size(tmp_path, size):
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25))
    for number in range(3):
        writer.write(Image.new("RGB", size, (200, 40, 40)), number / 25)
    writer.close()
    frames = list(FrameReader(tmp_path / "a.mp4"))
    assert [frame.image.shape for frame in frames] == [(3, size[1], size[0])] * 3
    assert np.abs(frames[0].image.float().mean((1, 2)).numpy() - (200, 40, 40)).max() < 12


def test_a_video_that_was_held_upright_is_turned(tmp_path):
    image = Image.new("RGB", SIZE_WH, (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, SIZE_WH[0] // 2, SIZE_WH[1]))  # red on the left
    writer = VideoWriter(tmp_path / "flat.mp4", Fraction(25))
    writer.write(image, 0.0)
    writer.close()
    # the matrix in the track's header: none, and a quarter clockwise, as telephones write it
    one, minus_one, none = b"\0\1\0\0", b"\xff\xff\0\0", bytes(4)
    content = (tmp_path / "flat.mp4").read_bytes()
    header = content.index(b"tkhd")
    turned = content[header:].replace(one + 3 * none + one, none + one + none + minus_one + none, 1)
    (tmp_path / "turned.mp4").write_bytes(content[:header] + turned)
    [frame] = FrameReader(tmp_path / "turned.mp4")
    assert frame.image.shape == (3, *SIZE_WH)
    assert frame.image[0, :28].min() > 200  # red is above
    assert frame.image[2, 36:].min() > 200


def test_memory_does_not_grow_with_the_length_of_a_video(model_dir):
    model = DetrForObjectDetection.from_pretrained(model_dir).eval()
    processor = DetrImageProcessor.from_pretrained(model_dir)
    alive, most = set(), 0

    def frames():
        for number in range(120):
            image = torch.zeros(3, 48, 64, dtype=torch.uint8)
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            yield number, image

    predict = Predictor(model, processor, threshold=0.9)
    order = []
    for (number, _), _, _ in predict(frames(), lambda source: source[1], batch_size=2, threads=2, keep_order=True):
        order.append(number)
        most = max(most, len(alive))
    assert order == list(range(120))
    assert most < 30  # a few batches, not 120
