"""Loads malicious files in a process that listens to itself: `python -m tests.laws.safe_loading_worker FOLDER`.

FOLDER/elsewhere is what no file may reach: code, configurations and weights. What each case did is printed as a line of
JSON: {"case", "error" (null where it loaded), "reached": [what of elsewhere, the network or other processes]}.
"""

import json
import logging
import pickle
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor
from hf_detr.checkpoints.original import load_original
from hf_detr.data.loading import load_detection_dataset
from tests.data.tiny_data import voc_xml
from tests.small_models import small_model
from tests.training.conftest import scenes, trainer_maker

FOLDER = Path(sys.argv[1])
ELSEWHERE = FOLDER / "elsewhere"
MARKER = FOLDER / "the-payload-ran"
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
reached: list[str] = []


def listen(event: str, arguments: tuple) -> None:
    if event in PROCESSES + NETWORK:
        reached.append(f"{event} {arguments}")
    elif event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(str(ELSEWHERE)):
        reached.append(f"{event} {arguments[0]}")


class Payload:
    """Writes the marker when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (MARKER,))


def attempt(case: str, load, *arguments) -> None:
    reached.clear()
    MARKER.unlink(missing_ok=True)
    error = None
    try:
        load(*arguments)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    ran = ["the payload ran"] if MARKER.exists() else []
    print(json.dumps({"case": case, "error": error, "reached": reached + ran}), flush=True)


def make_elsewhere() -> None:
    """A repository with code, another detector's weights, and a secret."""
    ELSEWHERE.mkdir()
    (ELSEWHERE / "code.py").write_text(
        f"import pathlib\npathlib.Path({str(MARKER)!r}).touch()\n"
        "from transformers import ResNetConfig\nclass EvilConfig(ResNetConfig):\n    model_type = 'evil'\n"
    )
    content = {"model_type": "evil", "auto_map": {"AutoConfig": "code.EvilConfig"}, "architecture": "test_resnet"}
    (ELSEWHERE / "config.json").write_text(json.dumps(content))
    save_file({"x": torch.zeros(1)}, ELSEWHERE / "model.safetensors")
    Image.new("RGB", (40, 30)).save(ELSEWHERE / "secret.png")
    (ELSEWHERE / "secret.xml").write_text(voc_xml("secret", [("cat", (4, 6, 10, 12))]))
    torch.save({"x": Payload()}, ELSEWHERE / "weights.pth")
    (ELSEWHERE / "secret.txt").write_text("secret")


def fresh_model(folder: Path) -> DetrForObjectDetection:
    return DetrForObjectDetection(DetrConfig.from_pretrained(folder))


def rows_of(folder: Path) -> list[dict]:
    return [row for rows in load_detection_dataset(folder).values() for row in rows]


def configurations() -> None:
    """Changes to a good config.json."""
    elsewhere, repo = str(ELSEWHERE), "somebody/detector"
    remote = {"auto_map": {"AutoConfig": "code.EvilConfig", "AutoBackbone": "code.Evil"}, "trust_remote_code": True}
    named = {"backbone_config": None, "use_timm_backbone": False}
    timm = {"backbone_config": None, "use_timm_backbone": True, "backbone": "test_resnet"}
    resnet = {"model_type": "resnet", "out_features": ["stage4"], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    resnet["hidden_sizes"] = [16, 16, 16, 16]
    detector = {"model_type": "conditional_detr", "use_timm_backbone": False, "backbone": elsewhere}
    cases = {
        "code of a folder": {**named, "backbone": elsewhere, "backbone_kwargs": {"trust_remote_code": True}},
        "a folder": {**named, "backbone": elsewhere},
        "a repository": {**named, "backbone": repo, "backbone_kwargs": None},
        "code of a repository": {**named, "backbone": repo, "backbone_kwargs": {"trust_remote_code": True}},
        "code of nothing": {
            **named,
            "backbone": None,
            "backbone_kwargs": {**remote, "name_or_path": elsewhere},
        },
        "code of a backbone_config": {"backbone_config": {**remote, "model_type": "evil", "_name_or_path": elsewhere}},
        "code of a known backbone": {"backbone_config": {**resnet, **remote, "_name_or_path": elsewhere}},
        "a detector as backbone": {"backbone_config": {**detector, "backbone_kwargs": {"trust_remote_code": True}}},
        "weights of a known backbone": {
            "backbone_config": {**resnet, "name_or_path": elsewhere, "_name_or_path": repo},
            "use_pretrained_backbone": True,
        },
        "code of the detector": {**remote, "auto_map": {"AutoConfig": f"{repo}--code.Evil"}},
        "a kernel": {"attn_implementation": repo, "_attn_implementation": repo, "experts_implementation": repo},
        "another configuration": {"configuration_files": ["config.4.0.0.json"]},
        "other weights": {"transformers_weights": "../elsewhere/model.safetensors"},
        "timm, a folder": {**timm, "backbone": f"local-dir:{elsewhere}"},
        "timm, a folder in backbone_config": {
            "backbone_config": {"model_type": "timm_backbone", "backbone": f"local-dir:{elsewhere}"}
        },
        "timm, a repository": {**timm, "backbone": f"hf-hub:{repo}"},
        "timm, an old name of a repository": {**timm, "backbone": f"hf_hub:{repo}"},
        "timm, a path": {**timm, "backbone": elsewhere},
        "timm, weights": {**timm, "backbone_kwargs": {"checkpoint_path": f"{elsewhere}/weights.pth"}},
        "timm, weights in the block": {"hf_detr": {"timm_kwargs": {"checkpoint_path": f"{elsewhere}/weights.pth"}}},
        "timm, pretrained": {**timm, "backbone_kwargs": {"pretrained": True, "features_only": False}},
        "timm, pretrained_cfg": {**timm, "backbone_kwargs": {"pretrained_cfg": {"file": f"{elsewhere}/weights.pth"}}},
        "timm, a cache": {**timm, "backbone_kwargs": {"cache_dir": elsewhere}},
        "names of methods": {"to_dict": "x", "check": 1, "from_pretrained": None},
    }
    good = FOLDER / "good"
    small_model().save_pretrained(good)
    fields = json.loads((good / "config.json").read_text())
    for number, (name, changes) in enumerate(cases.items()):
        folder = FOLDER / f"config-{number}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
        (folder / "config.4.0.0.json").symlink_to(ELSEWHERE / "config.json")
        changed = {**fields, **changes}
        (folder / "config.json").write_text(json.dumps(changed))
        attempt(f"from_pretrained: {name}", DetrConfig.from_pretrained, folder)
        attempt(f"from_json_file: {name}", DetrConfig.from_json_file, folder / "config.json")
        attempt(f"from_dict: {name}", lambda content: DetrConfig.from_dict(content).to_dict(), changed)
        attempt(f"model: {name}", DetrForObjectDetection.from_pretrained, folder)
        if changes.get("backbone_config"):
            attempt(
                f"fresh model: {name}", lambda path: DetrForObjectDetection(DetrConfig.from_pretrained(path)), folder
            )


def processors() -> None:
    folder = FOLDER / "processor"
    DetrImageProcessor().save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    remote = {"auto_map": {"AutoImageProcessor": "code.Evil"}, "trust_remote_code": True, "processor_class": "Evil"}
    remote |= {"_name_or_path": str(ELSEWHERE), "image_processor_type": "EvilProcessor"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **remote}))
    attempt("preprocessor_config.json", DetrImageProcessor.from_pretrained, folder)


def weights() -> None:
    torch.save({"model": {"input_proj.weight": torch.zeros(1)}, "args": Payload()}, FOLDER / "detr.pth")
    attempt("an original's .pth", load_original, FOLDER / "detr.pth")
    (FOLDER / "plain.pth").write_bytes(pickle.dumps(Payload()))
    attempt("a plain pickle", load_original, FOLDER / "plain.pth")
    folder = FOLDER / "bin"
    small_model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload()}, folder / "pytorch_model.bin")
    attempt("pytorch_model.bin", DetrForObjectDetection.from_pretrained, folder)
    folder = FOLDER / "adapter"
    small_model().save_pretrained(folder)
    adapter = {"base_model_name_or_path": str(ELSEWHERE), "peft_type": "LORA", "r": 2, "target_modules": ["fc1"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    attempt("an adapter of another model", DetrForObjectDetection.from_pretrained, folder)
    for number, shard in enumerate(("../elsewhere/model.safetensors", str(ELSEWHERE / "model.safetensors"))):
        folder = FOLDER / f"shards-{number}"
        model = small_model()
        model.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        attempt(f"shard {shard}", DetrForObjectDetection.from_pretrained, folder)


def resumed_runs() -> None:
    make = trainer_maker(FOLDER)
    make(rows=scenes(4), max_steps=1, save_steps=1, folder="run").train()
    checkpoint = FOLDER / "run" / "checkpoint-1"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        path = checkpoint / name
        before = path.read_bytes()
        torch.save({"x": Payload()}, path)
        trainer = make(rows=scenes(4), max_steps=2, folder="run")
        attempt(f"resume: {name}", trainer.train, str(checkpoint))
        path.write_bytes(before)


def data_sets() -> None:
    picture = FOLDER / "yolo" / "images" / "a.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(picture)
    (FOLDER / "yolo" / "labels").mkdir()
    (FOLDER / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = FOLDER / "yolo" / "data.yaml"
    data.write_text(f"names: [cat]\ntrain: images\nx: !!python/object/apply:pathlib.Path.touch ['{MARKER}']\n")
    attempt("YAML with an object", load_detection_dataset, data)
    data.write_text(f"names: [cat]\ntrain: images\ndownload: |\n  import pathlib; pathlib.Path('{MARKER}').touch()\n")
    attempt("YAML with a download", load_detection_dataset, data)
    data.write_text("names: [cat]\ntrain: https://example.invalid/images\n")
    attempt("YAML with an address", load_detection_dataset, data)

    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    documents = {
        "XML with a file": f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{ELSEWHERE}/secret.txt">]>',
        "XML with an address": '<!DOCTYPE a [<!ENTITY x SYSTEM "http://example.invalid/x">]>',
        "XML with a remote DTD": '<!DOCTYPE a SYSTEM "http://example.invalid/x.dtd">',
        "XML that grows": f'<!DOCTYPE a [<!ENTITY l0 "lollollol">{laughs}<!ENTITY x "&l11;">]>',
    }
    for number, (name, head) in enumerate(documents.items()):
        folder = FOLDER / f"voc-{number}"
        folder.mkdir()
        Image.new("RGB", (40, 30)).save(folder / "a.png")
        text = voc_xml("a", [("cat", (4, 6, 10, 12))]).replace("<name>cat", "<name>&x;")
        (folder / "a.xml").write_text(head + text)
        attempt(name, load_detection_dataset, folder)

    folder = FOLDER / "coco"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    image = {"id": 1, "file_name": "a.png", "coco_url": "http://example.invalid/a.png", "width": 40, "height": 30}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    attempt("COCO with an address", rows_of, folder)
    image["file_name"] = "http://example.invalid/a.png"
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    attempt("COCO with an address as file", load_detection_dataset, folder)
    for name in ("../elsewhere/secret.png", str(ELSEWHERE / "secret.png")):
        image["file_name"] = name
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
        attempt(f"COCO with the image {name}", rows_of, folder)
    folder = FOLDER / "voc-list"
    for path in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / path).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.png")
    (folder / "Annotations" / "a.xml").write_text(voc_xml("a", [("cat", (4, 6, 10, 12))]))
    for name in ("../../elsewhere/secret", str(ELSEWHERE / "secret")):
        (folder / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{name}\n")
        attempt(f"VOC with the list entry {name}", rows_of, folder)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    make_elsewhere()
    sys.addaudithook(listen)
    for part in (configurations, processors, weights, resumed_runs, data_sets):
        part()
