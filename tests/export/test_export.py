"""Exported detectors: they answer as the model on shapes they were not traced with, and run without torch."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")

from hf_detr import DetrImageProcessor, tiny_checkpoint
from hf_detr.cli.main import main
from hf_detr.export import FORMATS, PRECISIONS, ExportedDetector, export_model, exporting
from hf_detr.export.parity import trial_inputs, worst_difference
from tests.small_models import small_model

from .conftest import inference


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request, exporter, tmp_path_factory):
    """The small checkpoint as `hf-detr export` writes it."""
    folder = tmp_path_factory.mktemp(request.param) / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "Exporter", lambda *_, **__: exporter)  # traced once for all tests
        assert main(["export", str(tiny_checkpoint()), "--format", request.param, "-o", str(folder)]) == 0
    return folder


def test_the_folder_detects_without_torch_what_the_model_detects(tiny, photograph, exported):
    model, processor = tiny
    image, path = photograph
    done = inference(exported, path, 0.5)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[image.size[::-1]])
    assert len(expected["scores"]) > 0
    order = expected["scores"].argsort(descending=True)
    assert [line[0] for line in lines] == [model.config.id2label[int(label)] for label in expected["labels"][order]]
    numbers = torch.tensor([[float(number) for number in line[1:]] for line in lines])
    # Pillow resizes with other rounding than torch: up to two levels of 255
    torch.testing.assert_close(numbers[:, 0], expected["scores"][order], rtol=0, atol=0.02)
    torch.testing.assert_close(numbers[:, 1:], expected["boxes"][order], rtol=0, atol=1.0)
    assert "three inputs it was not traced with" in (exported / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "python inference.py IMAGE [THRESHOLD]"),
        (["nowhere.png"], "nowhere.png: no image that can be read"),
        ([__file__], "test_export.py: no image that can be read"),
        (["{deep}"], "grey with more than 8 bits a pixel; save it with 8"),
        (["{image}", "high"], "THRESHOLD high: expected a number from 0 to 1"),
        (["{image}", "7"], "python inference.py IMAGE [THRESHOLD]"),
    ],
)
def test_the_script_ends_what_it_cannot_use_with_one_line(exported, photograph, tmp_path, words, message):
    if exported.parent.name.startswith("openvino"):
        return  # the same lines
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(deep)
    done = inference(exported, *(word.format(image=photograph[1], deep=deep) for word in words))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_the_folder_keeps_what_is_above_the_saved_thresholds(tiny, photograph, exported, tmp_path):
    model, processor = tiny
    image, path = photograph
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(outputs, threshold=0.5)
    first = int(found["labels"][0])
    folder = shutil.copytree(exported, tmp_path / "out")
    settings = DetrImageProcessor.from_pretrained(folder)
    settings.class_thresholds = {first: 1.0}
    settings.save_pretrained(folder)
    done = inference(folder, path)
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[0] for line in done.stdout.splitlines()]
    expected = [model.config.id2label[label] for label in found["labels"].tolist() if label != first]
    assert sorted(names) == sorted(expected)


def test_the_graph_can_give_scores_labels_and_boxes_in_pixels(photograph, tmp_path):
    model, folder = small_model(encoder_layers=1, decoder_layers=1), tmp_path / "out"
    processor = DetrImageProcessor(size={"height": 64, "width": 80})
    export_model(model, processor, folder, "onnx", post_process=True)
    pixels, sizes = torch.randn(3, 3, 120, 88), [(240, 176), (60, 44), (120, 88)]
    mask, target_sizes = torch.ones(3, 120, 88, dtype=torch.int64), torch.tensor(sizes, dtype=torch.float32)
    exported = ExportedDetector(folder)
    found = exported.run(pixel_values=pixels, pixel_mask=mask, target_sizes=target_sizes)
    with torch.no_grad():
        outputs = model(pixels)
    expected = processor.post_process_object_detection(outputs, threshold=None, target_sizes=sizes)
    for name in ("scores", "boxes"):
        wanted = torch.stack([result[name] for result in expected])
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(found["labels"], torch.stack([result["labels"] for result in expected]))

    pixels[0, 0, 0, 0] = torch.nan
    scores = exported.run(pixel_values=pixels, pixel_mask=mask, target_sizes=target_sizes)["scores"]
    assert scores[0].isnan().all()
    assert scores[1:].isfinite().all()
    done = inference(folder, photograph[1], 0)  # the script takes these outputs too
    assert (done.returncode, len(done.stdout.splitlines())) == (0, model.config.num_queries), done.stderr


def test_the_graph_answers_as_the_model_padded_or_not_and_nan_stays_nan(tiny, exported):
    model, graph = tiny[0], ExportedDetector(exported)
    for _, inputs in trial_inputs(3, (96, 128), post_process=False, seed=7):
        with torch.no_grad():
            expected = model(**inputs)
        found = graph(**inputs)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-3)
    inputs["pixel_values"][0, 0, 0, 0] = torch.nan
    assert graph(**inputs).logits[0].isnan().all()  # law 12: NaN never becomes a detection


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_written(exporter, tmp_path, monkeypatch):
    class Moved(ExportedDetector):
        def __init__(self, folder):
            super().__init__(folder)
            run = self.run
            self.run = lambda **inputs: {**(outputs := run(**inputs)), "pred_boxes": outputs["pred_boxes"] + 0.01}

    monkeypatch.setattr(exporting, "ExportedDetector", Moved)
    with pytest.raises(ValueError, match=r"pred_boxes differ by 0.01 .* more than 0.001; nothing was written"):
        exporter.write(tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_graph_tells_nothing_of_the_machine_that_wrote_it(exported):
    for file in exported.glob("model.*"):
        assert b"hf_detr/" not in file.read_bytes()


def test_a_folder_that_is_not_empty_is_kept(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        export_model(*tiny, tmp_path)
    with pytest.raises(ValueError, match="is none of onnx, openvino"):
        export_model(*tiny, tmp_path / "new", "tflite")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torch_export_is_written_for_models_whose_graph_it_can_hold(tiny, tmp_path):
    model = small_model(backbone="resnet18")
    written = export_model(model, DetrImageProcessor(size={"height": 64, "width": 64}), tmp_path / "out", "torch")
    assert written.difference.value < 1e-4
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    pixels = torch.randn(1, 3, 100, 70)
    outputs = program.module()(pixel_values=pixels, pixel_mask=torch.ones(1, 100, 70, dtype=torch.int64))
    with torch.no_grad():
        torch.testing.assert_close(outputs["logits"], model(pixels).logits, rtol=0, atol=1e-4)
    # the poolings of this backbone round up by math.ceil, which torch.export cannot write
    with pytest.raises(ValueError, match=r"torch cannot hold this model .* try another format"):
        export_model(*tiny, tmp_path / "tiny", "torch")


def test_a_missing_package_is_named_with_its_remedy(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers.exporters", None)
    assert main(["export", str(tiny_checkpoint()), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert 'pip install "hf-detr[export]"' in error
    assert error.count("\n") == 1


def test_the_largest_difference_is_found_in_any_output_and_nan_on_one_side_is_infinite():
    inputs = list(trial_inputs(3, (64, 96), post_process=True))
    assert [name for name, _ in inputs] == ["one image of another shape", "a padded batch", "a batch of three"]
    assert not inputs[1][1]["pixel_mask"].all()

    def reference(pixel_values, **_):
        boxes = torch.zeros(len(pixel_values), 2, 4)
        return {"scores": torch.tensor([[0.5, torch.nan]]).repeat(len(pixel_values), 1), "boxes": boxes}

    def moved(pixel_values, **_):
        outputs = reference(pixel_values)
        if len(pixel_values) == 3:
            outputs["boxes"] = outputs["boxes"] + 0.9
        return outputs

    worst = worst_difference(reference, moved, inputs)
    assert (worst.output, worst.where) == ("boxes", "a batch of three")
    assert worst.value == pytest.approx(0.9 / 80)  # as a share of the shorter side
    finite = worst_difference(
        reference, lambda **batch: {**reference(**batch), "scores": torch.tensor([[0.5, 0.5]])}, inputs
    )
    assert finite.value == float("inf")


def test_the_command_offers_what_the_room_has(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in (*FORMATS, *PRECISIONS))
