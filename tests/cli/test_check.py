import json

import pytest
from PIL import Image

from hf_detr.cli.main import main

from .conftest import assert_one_line_and_exit_code_2, hf_detr, write_coco


def test_check_reports_draws_and_writes_json(digits_dir, tmp_path):
    done = hf_detr("check", digits_dir, "--json", tmp_path / "out" / "report.json", "--draw", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "train: 8 images" in done.stdout
    assert "test: 3 images" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["images"] == 8
    assert all(problem["severity"] == "warning" for problem in report["problems"])
    assert Image.open(tmp_path / "sheet.png").width > 600


def test_check_of_data_with_errors_names_them_and_exits_1(tmp_path):
    root = write_coco(tmp_path / "coco")
    (root / "val2017" / "b.png").write_bytes(b"no picture")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    done = hf_detr("check", root, "--draw", tmp_path / "sheet.png")
    assert done.returncode == 1, done.stderr
    assert "corrupt image" in done.stdout
    assert "b.png" in done.stdout
    assert "no area" in done.stdout
    assert (tmp_path / "sheet.png").exists()


def test_check_of_nothing_is_a_users_error(tmp_path):
    assert_one_line_and_exit_code_2(hf_detr("check", tmp_path / "absent"), "no such file or folder")


def test_check_judges_the_number_of_queries_given_or_that_of_a_model(digits_dir, model_dir, capsys):
    def said(*more, code=0) -> str:
        assert main(["check", str(digits_dir), "--headers-only", *map(str, more)]) == code
        return capsys.readouterr().out

    assert "num_queries=100 (the default) is enough" in said()
    assert "num_queries=1 is NOT ENOUGH" in said("--num-queries", 1, code=1)
    assert f"num_queries=9 (of {model_dir}) is enough" in said("--model", model_dir)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--model", "./nowhere"), "./nowhere: no such folder"),
        (("--model", "."), "no config.json"),
        (("--num-queries", "0"), "--num-queries: 0 is not a whole number of at least 1"),
        (("--num-queries", "5", "--model", "x"), "not allowed with argument"),
        (("--model", "nobody/nothing"), "error: nobody/nothing: "),
    ],
)
def test_impossible_queries_or_models_are_a_users_error(digits_dir, tmp_path, more, words):
    assert_one_line_and_exit_code_2(hf_detr("check", digits_dir, *more, cwd=tmp_path), words)


@pytest.mark.parametrize("damage", ["truncated", "missing", "size", "values", "duplicate", "queries", "area"])
def test_what_check_refuses_train_refuses_before_its_first_step_with_the_file(tmp_path, capsys, damage):
    root = write_coco(tmp_path / "coco")
    image, listed = root / "val2017" / "b.png", root / "annotations" / "instances_val2017.json"
    content = json.loads(listed.read_text())
    named = image
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:-40])
    elif damage == "missing":
        image.unlink()
    elif damage == "size":
        Image.new("RGB", (30, 30)).save(image)
    elif damage == "values":
        Image.new("F", (40, 30), -1.0).save(image, "TIFF")
    elif damage == "duplicate":
        content["images"][1]["id"], named = content["images"][0]["id"], listed
    elif damage == "area":
        content["annotations"][0]["area"], named = -1, listed
    else:
        content["annotations"] += [{**content["annotations"][0], "id": 9 + n, "bbox": [1, 1, n, 3]} for n in (1, 2, 3)]
        named = root / "val2017" / "a.png"
    listed.write_text(json.dumps(content))
    queries = ("--num-queries", "3")
    assert main(["check", str(root), *queries]) == 1
    capsys.readouterr()
    run = tmp_path / "run"
    assert (
        main(["train", str(root), "--output", str(run), "--backbone", "test_resnet", "--device", "cpu", *queries]) == 2
    )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(named) in last
    assert "the first: " in last
    assert "--no-check" in last
    assert not list(run.glob("checkpoint*"))
    if named == image and damage != "queries":
        assert main(["check", str(root), *queries, "--on-bad-image", "drop"]) == 0
