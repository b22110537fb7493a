"""Exported models with masks: `pred_masks` is an output, and the script writes them without torch."""

import numpy as np
import pytest
import torch
from hotcoco import mask as coco_mask
from PIL import Image

pytest.importorskip("transformers.exporters", reason="this transformers has no exporters")

from hf_detr import DetrImageProcessor
from hf_detr.export import ExportedDetector, Exporter
from hf_detr.export.parity import trial_inputs, worst_difference
from tests.small_models import small_segmenter

from .conftest import inference


@pytest.fixture(scope="module")
def exporter():
    model = small_segmenter(encoder_layers=1, decoder_layers=1, chunk_size_masks=5)  # of nine queries
    return Exporter(model, DetrImageProcessor(size={"height": 64, "width": 96}))


@pytest.fixture(scope="module")
def exported(exporter, tmp_path_factory):
    """Model, processor and folder."""
    folder = tmp_path_factory.mktemp("masks") / "out"
    exporter.write(folder, "onnx")
    return exporter.model, exporter.processor, folder


def test_masks_are_the_models_on_other_shapes_padded_or_not_and_nan_stays_nan(exported):
    model, _, folder = exported
    graph = ExportedDetector(folder)

    def reference(**inputs):
        outputs = model(**inputs)
        return {name: outputs[name] for name in ("logits", "pred_boxes", "pred_masks")}

    trials = list(trial_inputs(3, (80, 112), post_process=False, seed=7))
    worst = worst_difference(reference, graph.run, trials)
    assert worst.value < 1e-4, worst
    _, batch = trials[-1]
    batch["pixel_values"][0, 0, 0, 0] = torch.nan
    outputs = graph(**batch)
    assert outputs.pred_masks[0].isnan().all()
    assert outputs.logits[0].isnan().all()
    assert outputs.pred_masks[1:].isfinite().all()


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_masks_in_int8_are_nearly_the_models_and_nan_stays_nan(exporter, photograph, tmp_path, precision):
    pixels = exporter.processor(images=photograph[0], return_tensors="pt")["pixel_values"]
    exporter.write(tmp_path / "out", "onnx", precision, calibration=[pixels])
    graph = ExportedDetector(tmp_path / "out")
    with torch.no_grad():
        expected = exporter.model(pixels).pred_masks > 0
    assert ((graph(pixels).pred_masks > 0) == expected).float().mean() > 0.9
    pixels[0, 0, 0, 0] = torch.nan
    assert graph(pixels).pred_masks.isnan().all()


def test_the_script_writes_the_masks_that_the_processor_finds(exported, photograph, tmp_path):
    model, processor, folder = exported
    image, path = photograph
    done = inference(folder, path, 0, tmp_path / "map.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    (expected,) = processor.post_process_masks(outputs, 0.0, target_sizes=[image.size[::-1]])
    order = expected["scores"].argsort(descending=True).tolist()
    assert [line.split("\t")[0] for line in lines] == [model.config.id2label[int(expected["labels"][i])] for i in order]
    wanted = np.zeros(image.size[::-1], int)
    for number, index in reversed(list(enumerate(order, 1))):
        wanted[coco_mask.decode(expected["masks"][index]) > 0] = number
    found = np.asarray(Image.open(tmp_path / "map.png"))
    assert found.shape == wanted.shape
    assert len(np.unique(wanted)) > 2
    # Pillow resizes with other rounding than torch, which moves edges
    assert (found == wanted).mean() > 0.97


def test_a_map_of_nothing_is_all_zero(exported, photograph, tmp_path):
    done = inference(exported[2], photograph[1], 1, tmp_path / "map.png")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not np.asarray(Image.open(tmp_path / "map.png")).any()
