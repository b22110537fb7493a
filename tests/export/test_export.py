"""Exported detectors: they answer as the model on shapes they were not traced with, and run without torch."""

import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")

from hf_detr import DetrForObjectDetection, DetrImageProcessor, tiny_checkpoint
from hf_detr.cli.main import main
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.export import FORMATS, export_model, exporting
from hf_detr.export.parity import trial_inputs, worst_difference
from tests.small_models import small_model

WITHOUT_TORCH = (
    "import runpy, sys\n"
    # none of these can be imported
    "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'transformers', 'timm', 'hf_detr')))\n"
    "script = sys.argv.pop(1)\n"
    "sys.argv[0] = script\n"
    "runpy.run_path(script, run_name='__main__')\n"
)


@pytest.fixture(scope="module")
def tiny():
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint()).eval()
    return model, DetrImageProcessor.from_pretrained(tiny_checkpoint())


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """An image that no processor leaves at its size."""
    image = digit_scenes(1, 96, seed=5, split="test")[0]["image"].resize((150, 120))
    path = tmp_path_factory.mktemp("images") / "scene.png"
    image.save(path)
    return image, path


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request, tmp_path_factory):
    """The small checkpoint as `hf-detr export` writes it."""
    folder = tmp_path_factory.mktemp(request.param) / "out"
    assert main(["export", str(tiny_checkpoint()), "--format", request.param, "-o", str(folder)]) == 0
    return folder


def test_the_folder_detects_without_torch_what_the_model_detects(tiny, photograph, exported):
    model, processor = tiny
    image, path = photograph
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported / "inference.py"), str(path), "0.5"]
    done = subprocess.run(command, capture_output=True, text=True)
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
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder / "inference.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[0] for line in done.stdout.splitlines()]
    expected = [model.config.id2label[label] for label in found["labels"].tolist() if label != first]
    assert sorted(names) == sorted(expected)


def test_the_graph_can_give_scores_labels_and_boxes_in_pixels(tiny, tmp_path):
    import onnxruntime

    model, processor = tiny
    export_model(model, processor, tmp_path / "out", "onnx", post_process=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.randn(3, 3, 120, 88)
    sizes = [(240, 176), (60, 44), (120, 88)]
    inputs = {
        "pixel_values": pixels.numpy(),
        "pixel_mask": torch.ones(3, 120, 88, dtype=torch.int64).numpy(),
        "target_sizes": torch.tensor(sizes, dtype=torch.float32).numpy(),
    }
    names = [output.name for output in session.get_outputs()]
    found = {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, inputs), strict=True)}
    with torch.no_grad():
        outputs = model(pixels)
    expected = processor.post_process_object_detection(outputs, threshold=None, target_sizes=sizes)
    for name in ("scores", "boxes"):
        wanted = torch.stack([result[name] for result in expected])
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(found["labels"], torch.stack([result["labels"] for result in expected]))


def runner(folder):
    """What runs the graph of a folder: arrays in, arrays out, logits and boxes."""
    if (folder / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["logits", "pred_boxes"], inputs)
    import openvino

    model = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [model(inputs)[name] for name in ("logits", "pred_boxes")]


def test_the_graph_answers_as_the_model_padded_or_not_and_nan_stays_nan(tiny, exported):
    model, run = tiny[0], runner(exported)
    for _, inputs in trial_inputs(3, (96, 128), post_process=False, seed=7):
        with torch.no_grad():
            expected = model(**inputs)
        logits, boxes = run({name: value.numpy() for name, value in inputs.items()})
        torch.testing.assert_close(torch.tensor(logits), expected.logits, rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.tensor(boxes), expected.pred_boxes, rtol=0, atol=1e-3)
    inputs["pixel_values"][0, 0, 0, 0] = torch.nan
    logits, _ = run({name: value.numpy() for name, value in inputs.items()})
    assert torch.tensor(logits[0]).isnan().all()  # law 12: NaN never becomes a detection


def test_a_graph_that_answers_otherwise_is_refused_and_nothing_is_written(tiny, tmp_path, monkeypatch):
    def write(graph, format, sides_px, folder):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"wrong")

        def run(**inputs):
            outputs = graph(**inputs)
            return {**outputs, "pred_boxes": outputs["pred_boxes"] + 0.01}

        return run

    monkeypatch.setattr(exporting, "_write", write)
    with pytest.raises(ValueError, match=r"pred_boxes differ by 0.01 .* more than 0.001; nothing was written"):
        export_model(*tiny, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_kept(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        export_model(*tiny, tmp_path)
    with pytest.raises(ValueError, match="is none of onnx, openvino"):
        export_model(*tiny, tmp_path / "new", "tflite")


@pytest.mark.slow
def test_torch_export_is_written_for_models_whose_graph_it_can_hold(tiny, tmp_path):
    model = small_model(backbone="resnet18")
    difference = export_model(model, DetrImageProcessor(size={"height": 64, "width": 64}), tmp_path / "out", "torch")
    assert difference.value < 1e-4
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
    assert all(format in text for format in FORMATS)
    assert exporting.FORMATS.keys() == FORMATS.keys()
