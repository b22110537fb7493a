"""`hf-detr benchmark`: one row for each format that runs here, a reason for each that does not."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")

import numpy as np
import torch

from hf_detr import tiny_checkpoint
from hf_detr.cli._turns import Contestant, take_turns
from hf_detr.cli.benchmark import _NAMES
from hf_detr.cli.main import main


def test_formats_are_measured_and_one_that_cannot_run_has_its_reason(
    traced_once, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MALLOC_ARENA_MAX_", "")  # the memory of this process stays as it is
    monkeypatch.setitem(sys.modules, "openvino", None)
    source = str(tiny_checkpoint())
    assert main(["evaluate", source, str(digits), "--json", str(tmp_path / "metrics.json")]) == 0
    capsys.readouterr()
    words = ["--only", "onnx", "onnx-int8", "openvino", "--timed-images", "2", "--turns", "2", "--cpu-threads", "1"]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"), "--keep", str(tmp_path / "kept")]
    assert main(["benchmark", source, str(digits), *words, *files]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "b.json").read_text())
    rows = content["formats"]
    assert list(rows) == ["onnx", "onnx-int8"]
    assert rows["onnx"]["map"] == pytest.approx(json.loads((tmp_path / "metrics.json").read_text())["map"], abs=1e-3)
    for name, row in rows.items():
        assert row["ms"] > 0
        assert len(row["ms_of_turns"]) == 2
        assert row["peak_bytes"] > 10e6
        assert row["size_bytes"] == sum(file.stat().st_size for file in (tmp_path / "kept" / name).glob("model.*"))
        assert f"\n{name} " in printed
    assert rows["onnx-int8"]["size_bytes"] < 0.6 * rows["onnx"]["size_bytes"]
    assert "openvino" in content["not_run"]["openvino"]
    assert "not run here:\n  openvino: " in printed
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_a_contestant_that_ends_has_its_reason_and_the_others_go_on(exporter, tmp_path):
    exporter.write(tmp_path / "onnx")
    contestants = {"gone": Contestant("graph", str(tmp_path / "gone"), "cpu")}
    contestants["onnx"] = Contestant("graph", str(tmp_path / "onnx"), "cpu")
    results = take_turns(contestants, [torch.zeros(1, 3, 96, 96)], 1, 1, tmp_path)
    assert "gone: no model.onnx or model.xml" in results["gone"]
    assert results["onnx"]["ms"] > 0


def test_an_exported_graph_is_measured_without_torch(exporter, tmp_path):
    exporter.write(tmp_path / "onnx")
    np.savez(tmp_path / "images.npz", np.zeros((1, 3, 96, 96), np.float32))
    spec = {"kind": "graph", "source": str(tmp_path / "onnx"), "images": str(tmp_path / "images.npz")}
    spec |= {"threads": 1, "device": "cpu"}
    without = (
        "import runpy, sys\nsys.modules['torch'] = None\nrunpy.run_module('hf_detr.cli._timing', run_name='__main__')"
    )
    command = [sys.executable, "-c", without, json.dumps(spec)]
    done = subprocess.run(command, input="\n\n", capture_output=True, text=True)
    ready, *turns = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True}, done.stderr
    assert [len(turn["ms"]) for turn in turns] == [1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_format_is_measured_or_has_a_reason(digits, tmp_path):
    words = ["--timed-images", "2", "--turns", "1", "--cpu-threads", "1", "--calibration-images", "8"]
    assert main(["benchmark", str(tiny_checkpoint()), str(digits), *words, "--json", str(tmp_path / "b.json")]) == 0
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["formats"].keys() | content["not_run"].keys() == set(_NAMES)
    rows = content["formats"]
    assert {"eager", "onnx", "onnx-int8", "onnx-int8-static", "openvino", "openvino-int8-static"} <= rows.keys()
    for name in rows.keys() & {"compiled", "onnx", "onnx-fp16", "openvino", "openvino-bf16"}:
        assert rows[name]["map"] == pytest.approx(rows["eager"]["map"], abs=5e-3), name
