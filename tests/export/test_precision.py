"""Exports of less than float32: smaller, nearly the same detections, and what they cost is measured and said."""

import json

import pytest
import torch

pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")

import numpy as np
import onnx
import onnx_ir

from hf_detr import tiny_checkpoint
from hf_detr.cli.main import main
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.export import ExportedDetector
from hf_detr.export.exporting import Quality
from hf_detr.export.parity import trial_inputs
from hf_detr.export.precision import in_precision

from .conftest import inference


@pytest.fixture(scope="module")
def calibration(tiny):
    images = digit_scenes(8, 96, seed=1)["image"]
    return [tiny[1](images=image, return_tensors="pt")["pixel_values"] for image in images]


@pytest.mark.parametrize(
    ("format", "precision", "share"),
    [
        ("onnx", "fp16", 0.6),
        ("onnx", "bf16", 0.6),
        ("onnx", "int8", 0.6),
        ("onnx", "int8-static", 0.4),
        ("openvino", "fp16", 0.7),
        ("openvino", "int8-static", 0.7),
    ],
)
def test_less_precision_is_smaller_finds_the_same_and_nan_stays_nan(
    exporter, tiny, photograph, calibration, tmp_path, format, precision, share
):
    written = exporter.write(tmp_path / "out", format, precision, calibration=calibration)
    assert written.size_bytes < share * written.weight_bytes
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Precision: {precision}" in card
    assert "was not measured" in card

    model, processor = tiny
    inputs = processor(images=photograph[0], return_tensors="pt")
    graph = ExportedDetector(tmp_path / "out")
    with torch.no_grad():
        expected, found = (
            processor.post_process_object_detection(one(**inputs), 0.5, target_sizes=[(120, 150)])[0]
            for one in (model, graph)
        )
    assert len(expected["labels"]) > 0
    assert found["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=4.0)
    *_, (_, batch) = trial_inputs(3, (96, 128), post_process=False)
    batch["pixel_values"][0, 0, 0, 0] = torch.nan
    assert graph(**batch).logits[0].isnan().all()
    done = inference(tmp_path / "out", photograph[1], 0.5)
    assert len(done.stdout.splitlines()) == len(expected["labels"]), done.stderr


def test_ap_and_size_are_told_before_and_after_and_ap_is_that_of_evaluate(
    traced_once, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MALLOC_ARENA_MAX_", "")  # the memory of this process stays as it is
    source, folder = str(tiny_checkpoint()), tmp_path / "out"
    assert main(["evaluate", source, str(digits), "--json", str(tmp_path / "metrics.json")]) == 0
    ap = json.loads((tmp_path / "metrics.json").read_text())["map"]
    words = ["--precision", "int8", "--data", str(digits), "--max-ap-loss", "0.2", "-o", str(folder)]
    assert main(["export", source, *words]) == 0
    printed = capsys.readouterr().out
    before, after = (next(line.split() for line in printed.splitlines() if line.startswith(word)) for word in
                     ("before", "after"))  # fmt: skip
    assert before[1] == f"{ap:.3f}"
    assert float(before[2]) > 1.8 * float(after[2])  # MB
    assert f"COCO AP: {after[1]}, of the model {ap:.3f}" in (folder / "README.md").read_text()


def test_a_loss_above_the_limit_is_refused_and_nothing_is_written(exporter, tiny, tmp_path):
    quality = Quality(lambda model: 0.8 if model is tiny[0] else 0.7, "AP", max_loss=0.09)
    with pytest.raises(ValueError, match=r"onnx in bf16: AP falls from 0.800 to 0.700, by more than 0.09; nothing"):
        exporter.write(tmp_path / "out", "onnx", "bf16", quality=quality)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8-static"], "--precision int8-static takes its scales from images; give --data"),
        (["--precision", "int8", "--format", "torch"], "torch is written in fp32 alone; take onnx or openvino"),
        (["--data", "{digits}", "--post-process"], "--data measures a graph without --post-process"),
        (["--data", "/nowhere"], "/nowhere: no such file or folder"),
    ],
)
def test_what_does_not_go_together_is_one_line(traced_once, digits, tmp_path, capsys, words, message):
    words = [word.format(digits=digits) for word in words]
    assert main(["export", str(tiny_checkpoint()), "-o", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_beyond_float16_are_refused_and_bfloat16_takes_them():
    weights = onnx.numpy_helper.from_array(np.full(100, 1e5, np.float32), "weights")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [100]) for name in ("x", "y")]
    node = onnx.helper.make_node("Mul", ["x", "weights"], ["y"])
    graph = onnx_ir.from_proto(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:], [weights]))
    )
    with pytest.raises(ValueError, match=r"weights: a weight of 1e\+05 is beyond the range of fp16; take bf16"):
        in_precision(graph, "fp16", (), {})
    (narrow,) = in_precision(graph, "bf16", (), {}).graph.initializers.values()
    assert narrow.const_value.numpy().astype(np.float32) == pytest.approx(1e5, rel=2**-8)
