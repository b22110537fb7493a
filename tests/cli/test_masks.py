"""Folders with masks, from check to stock transformers, as `hf-detr` takes them; and what it refuses."""

import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import disable_progress_bars
from PIL import Image
from safetensors.torch import load_file

from hf_detr import DetrForSegmentation, DetrImageProcessor, digit_scenes, load_detection_dataset, tiny_checkpoint
from hf_detr.cli.main import main
from hf_detr.data.masks import decode_segmentation
from hf_detr.image_processing.tiling import merge_tiles, tile_corners

from ..data.mask_folders import write_coco_folder, write_panoptic_folder
from .test_killed import assert_same_weights, killed

QUICK = ["--model", tiny_checkpoint(), "--epochs", "3", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
KINDS = {"instance": write_coco_folder, "panoptic": write_panoptic_folder}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folder_of(parent, task):
    """Six images to train on and three others."""
    disable_progress_bars()
    options = {"image_size": 64, "max_objects": 3, "task": task}
    splits = {"train": digit_scenes(6, **options), "test": digit_scenes(3, split="test", **options)}
    return KINDS[task](parent, splits)


@pytest.fixture(scope="module")
def of_instances(tmp_path_factory):
    """A checked folder, and the run folder of masks learnt on it with a frozen detector, killed and resumed."""
    parent = tmp_path_factory.mktemp("instance")
    data, run = folder_of(parent / "data", "instance"), parent / "run"
    assert main(["check", str(data), "--masks"]) == 0
    words = [str(data), *QUICK, "--task", "instance", "--freeze-detector", "--output", str(run)]
    killed(1, 0, *words, timeout=240)
    return SimpleNamespace(task="instance", data=data, run=run, words=words)


@pytest.fixture(scope="module")
def of_segments(tmp_path_factory):
    """A checked panoptic folder, and the run folder of a training of all, which was killed and resumed."""
    parent = tmp_path_factory.mktemp("panoptic")
    data, run = folder_of(parent / "data", "panoptic"), parent / "run"
    assert main(["check", str(data), "--masks"]) == 0
    words = [str(data), *QUICK, "--output", str(run)]  # the data say what the task is
    killed(1, 0, *words, timeout=240)
    return SimpleNamespace(task="panoptic", data=data, run=run, words=words)


@pytest.fixture(params=["of_instances", "of_segments"])
def trained(request):
    """One and the other."""
    return request.getfixturevalue(request.param)


def number_of(task: str) -> str:
    return "pq" if task == "panoptic" else "map"


def test_the_run_folder_has_the_numbers_of_evaluate_and_a_card_of_the_task(trained, tmp_path):
    assert json.loads((trained.run / "run.json").read_text())["task"] == trained.task
    metrics = json.loads((trained.run / "metrics.json").read_text())
    assert any(f"eval_{number_of(trained.task)}" in entry for entry in metrics["history"])
    assert metrics["best_checkpoint"]
    words = ["evaluate", str(trained.run), str(trained.data), "--json", str(tmp_path / "numbers.json")]
    assert main([*words, "--device", "cpu", "--threads", "1"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    _, front, text = (trained.run / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    for key, name in (("pq", "PQ"), ("rq", "RQ")) if trained.task == "panoptic" else (("map_50", "mask AP50"),):
        assert numbers[key] == pytest.approx(metrics["metrics"][key], abs=1e-3)
        assert f"| {name} | {numbers[key]:.3f} |" in text
        hub = {one["name"]: one["value"] for one in front["model-index"][0]["results"][0]["metrics"]}
        assert hub[name] == pytest.approx(numbers[key], abs=1e-3)
    assert front["pipeline_tag"] == "image-segmentation"
    assert f"model for {trained.task} segmentation" in text
    assert "gave the same logits, boxes and masks" in text
    assert "DetrForSegmentation.from_pretrained" in text
    of_detections = ("precision_recall.png", "confusion.png")
    for name in of_detections:
        assert (name in text) == (trained.run / name).exists() == (trained.task == "instance")
    for name in ("predictions.png", "curves.png", *(of_detections if trained.task == "instance" else ())):
        with Image.open(trained.run / name) as figure:
            assert min(figure.size) > 200


def test_the_snippets_of_the_card_run(trained, monkeypatch):
    monkeypatch.chdir(trained.run.parent)
    Image.new("RGB", (64, 48), (90, 120, 30)).save("image.jpg")
    snippets = [part.split("```")[0] for part in (trained.run / "README.md").read_text().split("```python\n")[1:]]
    assert len(snippets) == 2  # ours and stock's
    names: dict = {}
    for snippet in snippets:
        exec(snippet, names)
    assert type(names["segmenter"].model).__module__.startswith("transformers.")


def test_stock_transformers_gives_the_same_masks(trained):
    stock, info = transformers.DetrForSegmentation.from_pretrained(trained.run, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = DetrForSegmentation.from_pretrained(trained.run).eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = stock.eval()(pixels), ours(pixels)
    for name in ("logits", "pred_boxes", "pred_masks"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_predict_writes_the_masks_that_the_model_gives(trained, tmp_path):
    images = trained.data / "test"
    words = ["--threshold", "0.05", "--device", "cpu", "--batch-size", "1", "--threads", "1"]
    assert main(["predict", str(trained.run), str(images), "--output", str(tmp_path / "out"), *words]) == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    model = DetrForSegmentation.from_pretrained(trained.run).eval()
    processor = DetrImageProcessor.from_pretrained(trained.run)
    assert len(rows) > 0
    for path in images.iterdir():
        image = Image.open(path)
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        mine = [row for row in rows if row["file_name"] == path.as_posix()]
        sizes = {"target_sizes": [image.size[::-1]], "processed_sizes": [(96, 96)]}
        if trained.task == "instance":
            [found] = processor.post_process_masks(outputs, threshold=0.05, **sizes)
            assert sorted(map(str, found["masks"])) == sorted(str(row["segmentation"]) for row in mine)
        else:
            [found] = processor.post_process_panoptic_segmentation(outputs, threshold=0.05, **sizes)
            for row in mine:
                mask = decode_segmentation(row["segmentation"], image.size[::-1])
                np.testing.assert_array_equal(mask, found["segmentation"] == row["id"])
        with Image.open(tmp_path / "out" / path.name) as drawing:
            assert drawing.width >= image.width


def test_panoptic_maps_have_the_segments_that_their_json_names(of_segments, tmp_path):
    words = ["--threshold", "0.05", "--device", "cpu", "--no-drawings"]
    out = tmp_path / "out"
    assert main(["predict", str(of_segments.run), str(of_segments.data / "test"), "--output", str(out), *words]) == 0
    content = json.loads((out / "panoptic.json").read_text())
    assert len(content["annotations"]) == 3
    for one in content["annotations"]:
        colours = np.asarray(Image.open(out / "panoptic" / one["file_name"])).astype(int)
        ids = colours @ [1, 256, 65536]
        areas = {segment["id"]: segment["area"] for segment in one["segments_info"]}
        assert {number: int((ids == number).sum()) for number in np.unique(ids[ids > 0]).tolist()} == areas


def test_a_killed_and_resumed_run_has_the_weights_of_one_left_alone(trained, tmp_path):
    assert main(["train", *trained.words[:-1], str(tmp_path / "alone")]) == 0
    assert_same_weights(trained.run, tmp_path / "alone")


def test_a_frozen_detector_stays_as_it_was(of_instances):
    before = load_file(f"{tiny_checkpoint()}/model.safetensors")
    after = load_file(of_instances.run / "model.safetensors")
    assert all(torch.equal(after[f"detr.{name}"], tensor) for name, tensor in before.items())


def test_what_a_model_with_masks_cannot_do_is_refused(of_instances, capsys):
    run = str(of_instances.run)
    for words, says in (
        (["evaluate", run, str(of_instances.data), "--task", "panoptic"], "take --task instance"),
        (["evaluate", tiny_checkpoint(), str(of_instances.data), "--task", "instance"], "a detector without masks"),
    ):
        assert main(words) == 2
        assert says in capsys.readouterr().err


def test_tiles_give_masks_of_the_whole_image(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fresh mask head
        model = DetrForSegmentation.from_detector(tiny_checkpoint()).eval()
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    image = digit_scenes(1, image_size=160, max_objects=8, seed=3, split="test")[0]["image"]
    image.save(tmp_path / "large.png")
    words = [str(tmp_path / "model"), str(tmp_path / "large.png"), "--output", str(tmp_path / "out"), "--tile", "96"]
    assert main(["predict", *words, "--device", "cpu", "--no-drawings"]) == 0
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())

    tiles, found = tile_corners((160, 160), 96, 0.2), []
    for tile in tiles:
        part = image.crop(tile)
        with torch.no_grad():
            outputs = model(**processor(images=part, return_tensors="pt"))
        sizes = {"target_sizes": [part.size[::-1]], "processed_sizes": [(96, 96)]}
        found += processor.post_process_masks(outputs, threshold=0.5, **sizes)
    expected = merge_tiles(found, tiles)
    assert len(expected["masks"]) > 2
    assert all(mask["size"] == [160, 160] for mask in expected["masks"])
    assert [row["segmentation"] for row in rows] == expected["masks"]


def test_masks_have_a_report_and_thresholds_and_segments_have_none(of_instances, of_segments, tmp_path, capsys):
    page, data = tmp_path / "page.html", str(of_instances.data)
    run = shutil.copytree(of_instances.run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert main(["evaluate", str(run), data, "--report", str(page), "--device", "cpu"]) == 0
    text = page.read_text()
    assert "AP and every IoU here are those of masks" in text
    assert "annotations, and beside or below them what was found" in text
    assert text.count("data:image/jpeg") == 6  # three images, each with its annotations and with what was found
    assert main(["evaluate", str(run), data, "--task", "detection", "--save-thresholds", "--device", "cpu"]) == 0
    saved = json.loads((run / "preprocessor_config.json").read_text())["class_thresholds"]
    assert saved
    assert all(0 < threshold < 1 for threshold in saved.values())
    words = [str(of_segments.run), str(of_segments.data / "test"), "--output", str(tmp_path / "out"), "--tile", "64"]
    assert main(["predict", *words]) == 2
    assert "--tile merges objects, and stuff is none" in capsys.readouterr().err
    for words in (["--report", str(page)], ["--save-thresholds"]):
        assert main(["evaluate", str(of_segments.run), str(of_segments.data), *words]) == 2
        assert "take --task instance for the masks" in capsys.readouterr().err


def test_what_cannot_be_learnt_is_refused_before_it_starts(tmp_path, capsys):
    data = str(folder_of(tmp_path / "data", "instance"))
    run = ["--output", str(tmp_path / "run")]

    def refused(*words, says):
        assert main([*map(str, words)]) == 2
        assert says in capsys.readouterr().err

    refused("train", data, *QUICK, *run, "--task", "panoptic", "--no-check", says="--task instance")
    refused("train", data, *QUICK, *run, "--task", "detection", "--freeze-detector", says="leave it out")
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"][2]["name"] = "walrus"
    path.write_text(json.dumps(content))
    other = tmp_path / "data" / "annotations" / "instances_test.json"
    other.write_text(json.dumps({**json.loads(other.read_text()), "categories": content["categories"]}))
    refused("train", data, *QUICK, *run, "--freeze-detector", says="has not the classes walrus of the data")
    refused("evaluate", tiny_checkpoint(), data, "--task", "instance", says="walrus")
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]  # two points
    path.write_text(json.dumps(content))
    assert main(["check", data]) == 0
    assert main(["check", data, "--masks"]) == 1
    capsys.readouterr()
    refused("train", data, *QUICK, *run, "--task", "instance", says="problems in the data")


def test_panoptic_data_with_a_bad_mask_is_refused_though_nobody_said_panoptic(tmp_path, capsys):
    data = folder_of(tmp_path / "data", "panoptic")
    path = data / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["id"] = 7  # not in the PNG
    path.write_text(json.dumps(content))
    assert main(["train", str(data), *QUICK, "--output", str(tmp_path / "run")]) == 2
    assert "problems" in (said := capsys.readouterr().err)
    assert "000000.png" in said
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def test_detection_stays_the_task_of_data_with_masks_and_says_so(tmp_path, capsys):
    data = folder_of(tmp_path / "data", "instance")
    words = [*QUICK, "--epochs", "1", "--output", str(tmp_path / "run")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", str(data), *words]) == 0
    assert "task: detection (the data has masks, which --task instance learns too)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == ["DetrForObjectDetection"]
    assert "segmentation" in load_detection_dataset(data)["train"].features["objects"]
