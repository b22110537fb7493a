"""Checkpoints of the original: what is read, what is refused, and the command that converts them."""

import argparse
import subprocess
import sys

import pytest
import torch

from hf_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from tests.parity.golden_cases import GoldenCase


@pytest.fixture(scope="module")
def case():
    return GoldenCase.read("resnet18_sine")


@pytest.fixture
def pth(case, tmp_path):
    path = tmp_path / "detr-r18.pth"
    torch.save({"model": case.weights(), "args": argparse.Namespace(**case.args)}, path)
    return path


def run(*arguments):
    command = [sys.executable, "-m", "hf_detr.cli.main", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_command_writes_a_folder_that_from_pretrained_reads(pth, tmp_path, case):
    finished = run(pth, tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert "DetrForObjectDetection, resnet18, 2 + 3 layers, 12 queries, 20 classes" in finished.stdout
    model = DetrForObjectDetection.from_pretrained(tmp_path / "out")
    DetrImageProcessor.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(*case.batch()).logits
    assert torch.allclose(logits, case.tensors["out.logits"], atol=1e-3)


def test_the_command_converts_a_segmentation_checkpoint_with_its_mask_head(tmp_path):
    case = GoldenCase.read("resnet50_segmentation")
    path = tmp_path / "detr-r50-panoptic.pth"
    torch.save({"model": case.weights(), "args": argparse.Namespace(**case.args)}, path)
    finished = run(path, tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert "DetrForSegmentation, resnet50" in finished.stdout
    model = DetrForSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.mask_loss_on_padding  # the loss it was trained with
    with torch.no_grad():
        masks = model(*case.batch()).pred_masks
    assert torch.allclose(masks, case.tensors["out.pred_masks"], atol=1e-3)


def test_the_published_panoptic_form_has_cocos_classes_of_things_and_stuff(tmp_path):
    weights = GoldenCase.read("resnet50_segmentation").weights()
    for part in ("weight", "bias"):
        name = f"detr.class_embed.{part}"
        weights[name] = weights[name][:1].repeat(251, *[1] * (weights[name].ndim - 1))
    torch.save({"model": weights}, tmp_path / "detr-r50-panoptic-00ce5173.pth")
    config = DetrForSegmentation.from_original(tmp_path / "detr-r50-panoptic-00ce5173.pth").config
    assert (config.num_labels, config.id2label[17], config.id2label[184]) == (250, "cat", "tree-merged")
    assert len(config.label_ids_to_fuse) == 53
    assert (config.label_ids_to_fuse[0], config.label_ids_to_fuse[-1]) == (92, 200)


def test_a_detectors_checkpoint_has_no_masks(pth):
    with pytest.raises(ValueError, match=r"without a mask head.*DetrForSegmentation\.from_detector"):
        DetrForSegmentation.from_original(pth)


def test_mistakes_are_one_line_and_exit_code_2(tmp_path, pth):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "text.pth").write_text("no weights")
    for arguments, message in (
        ((tmp_path / "missing.pth", tmp_path / "out"), "no such file"),
        ((tmp_path / "text.pth", tmp_path / "out"), "not a file of tensors"),
        ((pth, tmp_path / "full"), "not empty"),
        ((pth, tmp_path / "out", "--config", tmp_path / "none"), "no such file or folder"),
    ):
        finished = run(*arguments)
        assert finished.returncode == 2
        assert message in finished.stderr
        assert len(finished.stderr.strip().splitlines()) == 1


def test_the_published_form_has_no_arguments_and_eight_heads(tmp_path):
    case = GoldenCase.read("resnet50_default")
    path = tmp_path / "detr-r50-e632da11.pth"
    torch.save({"model": case.weights()}, path)
    config = DetrForObjectDetection.from_original(path).config
    assert (config.encoder_attention_heads, config.encoder_layers, config.encoder_ffn_dim) == (8, 6, 2048)
    assert (config.num_queries, config.num_labels, config.dilation) == (100, 91, False)
    assert config.id2label[17] == "cat"
    assert config.id2label[90] == "toothbrush"


def test_dilation_is_read_from_the_published_name(tmp_path):
    case = GoldenCase.read("resnet50_dc5")
    path = tmp_path / "detr-r50-dc5-f0fb7ef5.pth"
    torch.save({"model": case.weights()}, path)
    # 32 channels divide among 8 heads, so nothing tells that these weights had 4
    assert DetrForObjectDetection.from_original(path).config.dilation


def test_a_configuration_can_be_given(pth):
    config = DetrConfig(
        backbone="resnet18", d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=12, num_labels=20,
    )  # fmt: skip
    assert DetrForObjectDetection.from_original(pth, config).config.encoder_attention_heads == 2
    config.encoder_layers = 1
    with pytest.raises(ValueError, match="does not fit the configuration"):
        DetrForObjectDetection.from_original(pth, config)


def test_a_segmentation_checkpoint_gives_its_detector(case, tmp_path):
    path = tmp_path / "detr-panoptic.pth"
    weights = {f"detr.{name}": tensor for name, tensor in case.weights().items()}
    torch.save(
        {"model": {**weights, "mask_head.lay1.weight": torch.zeros(1)}, "args": argparse.Namespace(**case.args)}, path
    )
    with pytest.warns(UserWarning, match="mask_head are left out"):
        DetrForObjectDetection.from_original(path)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"model": {"a": torch.zeros(1)}}, "it has no input_proj.weight"),
        ([torch.zeros(1)], "holds a list"),
        ({"model": {}, "args": argparse.Namespace(pre_norm=True)}, "it has no input_proj"),
    ],
)
def test_other_files_are_refused(checkpoint, message, tmp_path):
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        DetrForObjectDetection.from_original(tmp_path / "other.pth")


def test_code_in_the_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a file of tensors"):
        DetrForObjectDetection.from_original(tmp_path / "evil.pth")
