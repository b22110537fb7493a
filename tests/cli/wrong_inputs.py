"""A folder of everything that a user may name by mistake, and commands that name it."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .conftest import write_coco


def write_wrong_inputs(root: Path, model: Path) -> dict[str, str]:
    """Writes them below `root`; name -> path. `model` is a sound one."""
    places = {"absent": root / "absent", "empty": root / "empty", "text": root / "text.txt", "model": model}
    (root / "empty").mkdir()
    (root / "text.txt").write_text("no such thing")
    places["coco"] = write_coco(root / "coco")
    places["image"] = sorted((root / "coco" / "val2017").glob("*.png"))[0]
    places["file_as_folder"] = places["text"] / "below"
    places["list_json"], places["text_json"], places["blank_json"] = (root / f"{name}.json" for name in "abc")
    for name, content in (("a", "[1]"), ("b", "words"), ("c", "")):
        (root / f"{name}.json").write_text(content)
    for name, damage in _DAMAGES.items():
        places[name] = root / name
        shutil.copytree(model, places[name])
        damage(places[name])
    for name, content in (
        ("pth_of_list", [1]),
        ("pth_of_numbers", {"model": {"input_proj.weight": 3}}),
        ("pth_of_another", {"model": {"a": torch.zeros(1)}}),
        ("pth_of_shapes", _weights_of_wrong_shapes()),
    ):
        places[name] = root / f"{name}.pth"
        torch.save(content, places[name])
    places["cut_pth"] = root / "cut.pth"
    places["cut_pth"].write_bytes(places["pth_of_another"].read_bytes()[:200])
    return {name: str(path) for name, path in places.items()}


def _change(file: str, **changes):
    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))

    return damage


def _write(file: str, content: bytes):
    return lambda folder: (folder / file).write_bytes(content)


def _cut(file: str, share: float):
    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: round(share * len(content))])

    return damage


def _spread(*shards: str):
    """As weights in shards whose index names others."""

    def damage(folder: Path) -> None:
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shards[0])}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _without_class_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "class_labels" not in k}, folder / "model.safetensors")


def _not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bbox_predictor.layers.0.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _weights_of_wrong_shapes() -> dict:
    names = ("input_proj.weight", "query_embed.weight", "class_embed.weight", "transformer.decoder.norm.weight")
    return {"model": {name: torch.zeros(8, 8) for name in names}}


_DAMAGES = {
    "of_another_type": _change("config.json", model_type="yolos"),
    "config_list": _write("config.json", b"[1]"),
    "config_blank": _write("config.json", b""),
    "config_binary": _write("config.json", b"\xff\x00{"),
    "config_words": _change("config.json", d_model="thirty-two"),
    "config_wide": _change("config.json", d_model=64),
    "config_deep": _change("config.json", encoder_layers=10**9),
    "config_classes": _change("config.json", id2label={"0": "cat"}, label2id={"cat": 0}),
    "cut": _cut("model.safetensors", 0.6),
    "cut_header": _cut("model.safetensors", 0.001),
    "blank": _write("model.safetensors", b""),
    "text_weights": _write("model.safetensors", b"these are no weights at all"),
    "no_weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no_head": _without_class_head,
    "not_a_number": _not_a_number,
    "no_processor": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "processor_blank": _write("preprocessor_config.json", b""),
    "processor_list": _write("preprocessor_config.json", b"[]"),
    "processor_words": _change("preprocessor_config.json", size="large"),
    "processor_huge": _change("preprocessor_config.json", size={"height": 2**40, "width": 2**40}),
    "shard_above": _spread("../model/model.safetensors"),
    "shard_absolute": _spread("/model.safetensors"),
    "shard_missing": _spread("model-00002-of-00002.safetensors"),
}

# words of a command, with the names above in braces -> what its one line must name
WRONG = {
    # a data set that is none
    "check {absent}": ["{absent}", "no such"],
    "check {empty}": ["{empty}", "no data set"],
    "check {text}": ["{text}"],
    "check {list_json}": ["{list_json}"],
    "check {text_json}": ["{text_json}"],
    "check {blank_json}": ["{blank_json}"],
    "check {text_json} --format coco": ["{text_json}", "JSON"],
    "check {coco} --format nonsense": ["nonsense", "coco"],
    "check {coco} --format yolo": ["{coco}"],
    "check {coco} --split nowhere": ["nowhere", "validation"],
    "check {coco} --image-dir {absent}": ["{absent}"],
    "check {coco} --class-names a a": ["class_names"],
    "check {coco} --bbox-format xxxx": ["xxxx", "xywh"],
    "check {coco} --num-queries -3": ["--num-queries", "-3"],
    "check {coco} --images some": ["--images", "some"],
    # models
    "check {coco} --model {absent}": ["{absent}"],
    "check {blank_json} --format coco": ["{blank_json}", "empty"],
    "check {coco} --model {config_list}": ["{config_list}", "object"],
    "check {coco} --model {config_words}": ["{config_words}", "d_model", "thirty-two"],
    "evaluate {absent} {coco}": ["{absent}"],
    "evaluate {text} {coco}": ["{text}", "config.json"],
    "evaluate {empty} {coco}": ["{empty}", "config.json"],
    "evaluate {of_another_type} {coco}": ["{of_another_type}", "yolos"],
    "evaluate {config_list} {coco}": ["{config_list}", "object"],
    "evaluate {config_blank} {coco}": ["{config_blank}", "empty"],
    "evaluate {config_binary} {coco}": ["{config_binary}", "JSON"],
    "evaluate {config_words} {coco}": ["{config_words}", "d_model", "thirty-two"],
    "evaluate {config_wide} {coco}": ["{config_wide}", "another shape"],
    "evaluate {config_deep} {coco}": ["{config_deep}", "encoder_layers"],
    "evaluate {config_classes} {coco}": ["{config_classes}", "another shape"],
    "evaluate {cut} {coco}": ["{cut}/model.safetensors", "not written to its end"],
    "evaluate {cut_header} {coco}": ["{cut_header}/model.safetensors", "damaged"],
    "evaluate {blank} {coco}": ["{blank}/model.safetensors", "empty"],
    "evaluate {text_weights} {coco}": ["{text_weights}/model.safetensors"],
    "evaluate {no_weights} {coco}": ["{no_weights}", "model.safetensors"],
    "evaluate {no_head} {coco}": ["{no_head}", "2 tensors missing"],
    "evaluate {not_a_number} {coco}": ["{not_a_number}", "NaN"],
    "evaluate {no_processor} {coco}": ["{no_processor}/preprocessor_config.json"],
    "evaluate {processor_blank} {coco}": ["{processor_blank}/preprocessor_config.json", "empty"],
    "evaluate {processor_list} {coco}": ["{processor_list}/preprocessor_config.json", "object"],
    "evaluate {processor_words} {coco}": ["{processor_words}", "size"],
    "evaluate {processor_huge} {coco}": ["{processor_huge}", "size"],
    "evaluate {shard_above} {coco}": ["{shard_above}/model.safetensors.index.json", "outside"],
    "evaluate {shard_absolute} {coco}": ["{shard_absolute}/model.safetensors.index.json", "outside"],
    "evaluate {shard_missing} {coco}": ["{shard_missing}"],
    "evaluate {model} {absent}": ["{absent}"],
    "evaluate {model} {text}": ["{text}"],
    "evaluate {model} {coco} --split train": ["train", "validation"],
    "evaluate {model} {coco} --max-dets 5 5": ["5", "different"],
    "evaluate {model} {coco} --max-dets 0": ["--max-dets", "0"],
    "evaluate {model} {coco} --max-dets 99999999999999999999": ["--max-dets", "99999"],
    "evaluate {model} {coco} --batch-size 0": ["--batch-size", "0"],
    "evaluate {model} {coco} --batch-size 1.5": ["--batch-size", "1.5"],
    "evaluate {model} {coco} --threads many": ["--threads", "many"],
    "evaluate {model} {coco} --device cuda:99": ["--device cuda:99"],
    "evaluate {model} {coco} --device meta": ["--device meta"],
    "evaluate {model} {coco} --device toaster": ["--device toaster"],
    "export {absent}": ["{absent}"],
    "export {text}": ["{text}", "config.json"],
    "export {cut}": ["{cut}/model.safetensors", "not written to its end"],
    "export {no_processor}": ["{no_processor}/preprocessor_config.json"],
    "export {model} --format flash": ["flash", "onnx"],
    "export {model} --max-difference -1": ["--max-difference", "-1"],
    "export {model} --max-difference nan": ["--max-difference", "nan"],
    "export {model} --output {text}": ["{text}", "not empty"],
    "export {model} --output {coco}": ["{coco}", "--overwrite"],
    "export {model} --output {file_as_folder}": ["{text}"],
    "export {model} --precision int8-static": ["--precision int8-static", "give --data"],
    "export {model} --precision int4": ["int4", "int8-static"],
    "export {model} --data {absent}": ["{absent}"],
    "export {model} --max-ap-loss nan": ["--max-ap-loss", "nan"],
    "export": ["model"],
    "benchmark {absent} {coco}": ["{absent}"],
    "benchmark {model} {absent}": ["{absent}"],
    "benchmark {model} {coco} --only tflite": ["tflite", "onnx-int8"],
    "benchmark {model} {coco} --json {text}/b.json": ["--json {text}/b.json"],
    "benchmark {model}": ["DATA"],
    # where to write
    "evaluate {model} {coco} --json {empty}": ["--json {empty}", "name a file"],
    "evaluate {model} {coco} --json {file_as_folder}": ["--json {file_as_folder}"],
    "evaluate {model} {coco} --results {file_as_folder}/a.json": ["--results {file_as_folder}/a.json"],
    "check {coco} --json {empty}": ["--json {empty}", "name a file"],
    "check {coco} --draw {empty}": ["--draw {empty}"],
    "check {coco} --draw {file_as_folder}.png": ["--draw {file_as_folder}.png"],
    "check {coco} --draw {empty}/sheet.doc": ["--draw {empty}/sheet.doc", ".png"],
    "train {coco} --model {model} --output {text}": ["{text}"],
    "train {coco} --model {model} --output {file_as_folder}": ["{file_as_folder}"],
    "train {coco} --model {model} --output {coco}": ["{coco}", "not empty"],
    "predict {model} {coco} --output {text}": ["{text}"],
    "predict {model} {coco} --output {file_as_folder}": ["{file_as_folder}"],
    "convert {pth_of_another} {text}": ["{text}"],
    "convert {pth_of_another} {coco}": ["{coco}", "--overwrite"],
    "demo --output {text}": ["{text}"],
    "demo --output {file_as_folder}": ["{file_as_folder}"],
    # training
    "train {absent} --output {empty}/run": ["{absent}"],
    "train {text} --model {model} --output {empty}/run": ["{text}"],
    "train {coco} --model {of_another_type} --output {empty}/run": ["{of_another_type}", "yolos"],
    "train {coco} --model {cut} --output {empty}/run --no-check": ["{cut}/model.safetensors"],
    "train {coco} --model {no_head} --output {empty}/run --no-check": ["{no_head}", "missing"],
    "train {coco} --model {no_processor} --output {empty}/run --no-check": ["{no_processor}"],
    "train {coco} --model {processor_list} --output {empty}/run --no-check": ["{processor_list}"],
    "train {coco} --output {empty}/run --backbone resnet5000": ["resnet5000"],
    "train {coco} --output {empty}/run --backbone test_resnet --d-model 30": ["30"],
    "train {coco} --output {empty}/run --backbone test_resnet --model {model}": ["--model", "--backbone"],
    "train {coco} --output {empty}/run --model {model} --epochs 0": ["--epochs", "0"],
    "train {coco} --output {empty}/run --model {model} --learning-rate -1": ["--learning-rate", "-1"],
    "train {coco} --output {empty}/run --model {model} --learning-rate fast": ["--learning-rate", "fast"],
    "train {coco} --output {empty}/run --model {model} --hold-out 1": ["--hold-out 1"],
    "train {coco} --output {empty}/run --model {model} --lr-drop-at 7": ["--lr-drop-at", "7"],
    "train {coco} --output {empty}/run --model {model} --augment-until 0": ["--augment-until 0", "--augment none"],
    "train {coco} --output {empty}/run --model {model} --seed x": ["--seed", "x"],
    "train {coco} --output {absent} --model {model} --resume": ["{absent}", "no run"],
    "train --output {new}": ["DATA"],
    "train {coco} --resume": ["--output"],
    "train {coco} --resume --explain --output {new}": ["--explain", "run.json"],
    "demo --epochs 0": ["--epochs", "0"],
    "demo --scenes -5": ["--scenes", "-5"],
    # images
    "predict {model} {absent}": ["{absent}"],
    "predict {model} {empty}": ["{empty}"],
    "predict {model} {empty}/*.jpg": ["{empty}/*.jpg"],
    "predict {cut} {coco} --output {new}": ["{cut}/model.safetensors"],
    "predict {config_blank} {coco} --output {new}": ["{config_blank}"],
    "predict {processor_list} {coco} --output {new}": ["{processor_list}"],
    "predict {model} {coco} --threshold 50": ["--threshold", "50"],
    "predict {model} {coco} --threshold nan": ["--threshold", "nan"],
    # one image explained
    "explain {absent} --model {model} -o {new}.html": ["{absent}", "no such"],
    "explain {text} --model {model} -o {new}.html": ["{text}", "not an image"],
    "explain {coco} --model {model} -o {new}.html": ["{coco}"],
    "explain {image} --model {absent}": ["{absent}"],
    "explain {image} --model {cut} -o {new}.html": ["{cut}/model.safetensors"],
    "explain {image} --model {not_a_number} -o {new}.html": ["{image}", "NaN"],
    "explain {image}": ["--model"],
    "explain {image} --model {model} -o {image}": ["--output {image}", ".html"],
    "explain {image} --model {model} -o {file_as_folder}.html": ["--output {file_as_folder}.html"],
    "explain {image} --model {model} -o {new}.html --point 500 1": ["--point 500 1", "{image}"],
    "explain {image} --model {model} -o {new}.html --point a b": ["--point", "a"],
    "explain {image} --model {model} -o {new}.html --threshold 2": ["--threshold", "2"],
    "explain {image} --model {model} -o {new}.html --queries-over {absent}": ["{absent}"],
    # checkpoints of the original
    "convert {absent} {new}": ["{absent}"],
    "convert {coco} {new}": ["{coco}", "folder"],
    "convert {text} {new}": ["{text}"],
    "convert {cut_pth} {new}": ["{cut_pth}"],
    "convert {pth_of_list} {new}": ["{pth_of_list}", "list"],
    "convert {pth_of_numbers} {new}": ["{pth_of_numbers}", "tensors"],
    "convert {pth_of_another} {new}": ["{pth_of_another}", "input_proj.weight"],
    "convert {pth_of_shapes} {new}": ["{pth_of_shapes}"],
    "convert {pth_of_shapes} {new} --config {model}": ["{pth_of_shapes}"],
    "convert {pth_of_another} {new} --config {absent}": ["--config {absent}"],
    "convert {pth_of_another} {new} --config {text_json}": ["{text_json}", "JSON"],
    "convert {pth_of_another} {new} --config {list_json}": ["{list_json}", "object"],
    "convert {pth_of_another} {new} --config {of_another_type}": ["{of_another_type}", "yolos"],
    "convert {text}": ["output"],
    # commands
    "predikt {coco}": ["predikt", "predict"],
    "check {coco} --nonsense": ["--nonsense"],
}
