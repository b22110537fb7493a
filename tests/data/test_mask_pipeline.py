import numpy as np
import pytest
import torch
from PIL import Image

from hf_detr import DetectionCollator, DetectionTransform, DetrImageProcessor, shape_scenes, transform_dataset
from hf_detr.data.augmentation import PaperAugmentation
from hf_detr.data.masks import boxes_from_masks
from hf_detr.training.rows import ApplyBoxPolicy

from .mask_folders import masks_of

SIZE = 48


@pytest.fixture(scope="module")
def scenes():
    return shape_scenes(6, SIZE, task="panoptic")


def labels_of(dataset, *, size=SIZE, **options):
    processor = DetrImageProcessor(size={"height": size, "width": size})
    items = list(transform_dataset(dataset, DetectionTransform(processor, masks=True, **options)))
    return DetectionCollator()(items)["labels"]


def boxes_px(label) -> np.ndarray:
    centre, size = label["boxes"][:, :2].double(), label["boxes"][:, 2:].double()
    return (torch.cat((centre - size / 2, size), dim=1) * SIZE).numpy()


def test_masks_come_out_as_they_went_in_where_nothing_is_done_to_the_image(scenes):
    for label, row in zip(labels_of(scenes), scenes, strict=True):
        assert label["masks"].dtype == torch.uint8
        assert np.array_equal(label["masks"], np.stack(masks_of(row)))


def test_masks_are_resized_nearest_with_their_image(scenes):
    for label, row in zip(labels_of(scenes, size=3 * SIZE), scenes, strict=True):
        assert np.array_equal(label["masks"], np.stack(masks_of(row)).repeat(3, axis=1).repeat(3, axis=2))


def test_masks_and_image_of_a_flip_are_mirrored(scenes):
    augment = PaperAugmentation(shortest_edge=SIZE, longest_edge=SIZE, flip_probability=1)
    row = {**scenes[0], "image": scenes[0]["image"].convert("RGB")}
    for seed in range(20):
        torch.manual_seed(seed)
        result = augment(row)
        if np.array_equal(np.asarray(result["image"]), np.asarray(row["image"])[:, ::-1]):
            break
    else:
        pytest.fail("no seed left the size as it is")
    assert np.array_equal(np.stack(result["objects"]["segmentation"]), np.stack(masks_of(row))[:, :, ::-1])


@pytest.mark.parametrize("seed", range(4))
def test_boxes_made_from_masks_are_tight_after_the_augmentation(scenes, seed):
    torch.manual_seed(seed)
    augment = PaperAugmentation(shortest_edge=SIZE, longest_edge=SIZE)
    for label in labels_of(scenes, augment=augment, boxes_from_masks=True):
        assert label["masks"].flatten(1).any(dim=1).all()
        np.testing.assert_allclose(boxes_px(label), boxes_from_masks(label["masks"]), atol=1.5)
    plain = labels_of(scenes, boxes_from_masks=True)[0]
    np.testing.assert_allclose(boxes_px(plain), boxes_from_masks(plain["masks"]), atol=1e-4)
    assert plain["area"].tolist() == plain["masks"].sum(dim=(1, 2)).tolist()


def test_labels_of_an_image_are_the_same_alone_and_beside_any_other(scenes):
    processor = DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 60})
    row, wide = scenes[0], Image.new("RGB", (90, 30))
    nothing = {"image_id": 1, "annotations": []}
    alone = processor(row["image"], row, return_segmentation_masks=True, return_tensors="pt")["labels"][0]
    beside = processor([row["image"], wide], [row, nothing], return_segmentation_masks=True, return_tensors="pt")
    assert beside["pixel_values"].shape[-1] == 60
    assert all(torch.equal(alone[name], beside["labels"][0][name]) for name in alone)
    assert alone["masks"].shape[1:] == (40, 40)


def test_crowds_and_objects_that_an_augmentation_drops_leave_with_their_masks(scenes):
    row = scenes[1]
    objects = {**row["objects"], "iscrowd": [1] + [0] * (len(row["objects"]["id"]) - 1)}
    objects["segmentation"] = [None, *objects["segmentation"][1:]]  # crowds need none: they are not trained on
    objects["bbox"] = [*objects["bbox"][:-1], [0.0, 0.0, 0.0, 5.0]]
    batch = {name: [value] for name, value in {**row, "objects": objects}.items()}
    processor = DetrImageProcessor(size={"height": SIZE, "width": SIZE})
    (label,) = DetectionTransform(processor, ApplyBoxPolicy("drop"), masks=True)(batch)["labels"]
    assert np.array_equal(label["masks"], np.stack(masks_of(row))[1:-1])
    assert label["class_labels"].tolist() == row["objects"]["category"][1:-1]


def test_an_augmentation_that_leaves_masks_behind_is_named(scenes):
    def halve(row):
        size = SIZE // 2
        boxes = [[value / 2 for value in box] for box in row["objects"]["bbox"]]
        image = row["image"].resize((size, size))
        return {**row, "image": image, "width": size, "height": size, "objects": {**row["objects"], "bbox": boxes}}

    with pytest.raises(ValueError, match=r"image_id 0.*object 0: the mask has size \[48, 48\], its image \[24, 24\]"):
        labels_of(scenes, augment=halve)
    with pytest.raises(ValueError, match="boxes_from_masks needs masks=True"):
        DetectionTransform(DetrImageProcessor(), boxes_from_masks=True)
    without = scenes.map(
        lambda row: {"objects": {**row["objects"], "segmentation": [None] * len(row["objects"]["id"])}}
    )
    with pytest.raises(ValueError, match=r"image_id 0.*object 0: segmentation None says nothing"):
        labels_of(without)
