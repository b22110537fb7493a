"""`hf-detr compare`: the numbers are those of evaluate, side by side."""

import json

from hf_detr.cli.main import main

from .conftest import write_coco


def test_models_are_measured_on_one_split_and_told_apart(model_dir, tmp_path, capsys):
    data = write_coco(tmp_path / "coco")
    assert main(["evaluate", str(model_dir), str(data), "--json", str(tmp_path / "one.json")]) == 0
    capsys.readouterr()
    words = ["--json", str(tmp_path / "both.json"), "--plot", str(tmp_path / "curves.png"), "--draws", "20"]
    assert main(["compare", str(model_dir), str(model_dir), str(data), *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count(str(model_dir)) == 4  # two rows, and who differs from whom
    assert "may be chance" in printed
    one, both = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "both.json"))
    assert [model["map"] for model in both["models"]] == [one["map"]] * 2
    assert both["differences"][0]["map"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_one_model_is_not_compared(model_dir, tmp_path, capsys):
    assert main(["compare", str(model_dir), str(tmp_path)]) == 2
    assert "name at least two models" in capsys.readouterr().err
