"""`evaluate_model` measures boxes, masks, segments and class maps in one pass, whatever the sizes of the images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from torch import nn
from torch.nn.functional import interpolate

from hf_detr import DetrImageProcessor
from hf_detr.evaluation import CocoEvaluator, EvaluatorGroup, PanopticEvaluator, SemanticEvaluator, evaluate_model

CLASSES = ["red", "green", "ground"]


class SeesColours(nn.Module):
    """A query for each channel of the image: its mask is where the channel is bright."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        grid_hw = [-(-side // 4) for side in pixel_values.shape[-2:]]
        bright = interpolate(pixel_values, grid_hw, mode="bilinear", antialias=True)
        masks = 40 * (bright - (bright.amax((-2, -1), True) + bright.amin((-2, -1), True)) / 2)
        logits = torch.full((len(masks), 3, 4), -9.0)
        logits[:, range(3), range(3)] = 9.0
        boxes = []
        for mask in (masks > 0).flatten(0, 1):
            y, x = mask.nonzero().T
            x0, x1, y0, y1 = x.min(), x.max() + 1, y.min(), y.max() + 1
            centre, size = torch.stack((x0 + x1, y0 + y1)) / 2, torch.stack((x1 - x0, y1 - y0))
            boxes.append(torch.cat((centre, size)) / torch.tensor([*mask.shape[::-1]] * 2))
        return SimpleNamespace(logits=logits, pred_masks=masks, pred_boxes=torch.stack(boxes).view(-1, 3, 4))


@pytest.fixture
def dataset(tmp_path):
    rows = []
    for number, (height, width) in enumerate([(64, 96), (96, 64), (64, 96), (80, 80)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = 255
        pixels[8:40, 4:28], pixels[16:32, 36:60] = (255, 0, 0), (0, 255, 0)
        ids = (pixels // 255 * [1, 2, 3]).sum(-1).astype(np.uint8)
        PILImage.fromarray(ids).save(tmp_path / f"{number}-ids.png")
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
        objects = {"bbox": [[4, 8, 24, 32], [36, 16, 24, 16], [0, 0, width, height]], "category": [0, 1, 2]}
        objects["segmentation"] = [{"file": str(tmp_path / f"{number}-ids.png"), "id": k} for k in (1, 2, 3)]
        objects["area"] = [768.0, 384.0, float(height * width - 1152)]
        objects["is_thing"] = [True, True, False]
        row = {"image": str(tmp_path / f"{number}.png"), "image_id": number, "width": width, "height": height}
        rows.append({**row, "objects": objects})
    segmentation = {"file": Value("string"), "id": Value("int64")}
    objects = {
        "bbox": List(List(Value("float32"))),
        "category": List(Value("int64")),
        "segmentation": List(segmentation),
        "area": List(Value("float32")),
        "is_thing": List(Value("bool")),
    }
    numbers = {name: Value("int32") for name in ("image_id", "width", "height")}
    return Dataset.from_list(rows, Features({"image": Image(), **numbers, "objects": objects}))


def group():
    return EvaluatorGroup(
        box=CocoEvaluator(CLASSES),
        mask=CocoEvaluator(CLASSES, iou_type="segm"),
        panoptic=PanopticEvaluator(CLASSES),
        semantic=SemanticEvaluator(CLASSES),
    )


def test_all_kinds_are_measured_in_one_pass(dataset):
    processor = DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 512})
    metrics = evaluate_model(SeesColours(), processor, dataset, batch_size=2, evaluator=group()).compute()
    assert all(one["num_images"] == 4 for one in metrics.values())
    assert metrics["mask"]["map_75"] == pytest.approx(1)
    assert metrics["mask"]["map"] > 0.85
    assert metrics["box"]["map_75"] == pytest.approx(1)
    assert metrics["panoptic"]["pq"] > 0.9
    assert metrics["panoptic"]["per_class"]["ground"]["is_thing"] is False
    assert metrics["semantic"]["miou"] > 0.9


def test_labels_that_the_data_has_not_are_left_out(dataset):
    processor = DetrImageProcessor(size={"shortest_edge": 128, "longest_edge": 512})
    evaluators = group().evaluators
    evaluators.pop("semantic")
    some = EvaluatorGroup(**evaluators)
    evaluate_model(SeesColours(), processor, dataset, evaluator=some, class_of_label={0: 1, 1: 0})
    metrics = some.compute()
    assert metrics["mask"]["num_detections"] == metrics["panoptic"]["num_segments"] == 8
    assert metrics["mask"]["map"] == metrics["panoptic"]["pq"] == 0
    with pytest.raises(TypeError, match="map of classes"):
        evaluate_model(SeesColours(), processor, dataset, evaluator=SemanticEvaluator(CLASSES), class_of_label={0: 0})


def test_masks_that_are_not_finite_are_named(dataset):
    class Diverged(SeesColours):
        def forward(self, pixel_values):
            outputs = super().forward(pixel_values)
            outputs.pred_masks[0, 1, 2, 3] = float("nan")
            return outputs

    with pytest.raises(ValueError, match="image 0: the model's outputs hold a NaN"):
        evaluate_model(Diverged(), DetrImageProcessor(size=128), dataset, evaluator=group())
