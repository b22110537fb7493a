import pickle
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from transformers import DetrImageProcessor as StockProcessor

from hf_detr.data.augmentation import PaperAugmentation, paper_augmentation
from hf_detr.data.collator import DetectionCollator
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.strong_augmentation import ColourJitter
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.image_processing_detr import DetrImageProcessor

from .tiny_data import SCENES


def small_processor(cls=DetrImageProcessor, **options):
    return cls(**{"size": {"shortest_edge": 60, "longest_edge": 100}, **options})


def row_with_rectangles(size_wh=(120, 90)) -> dict:
    """A black picture with two white rectangles that are exactly their boxes, and their masks."""
    image = Image.new("RGB", size_wh)
    boxes = [[10.0, 20.0, 30.0, 40.0], [70.0, 5.0, 40.0, 80.0]]
    masks = np.zeros((2, size_wh[1], size_wh[0]), dtype=bool)
    for index, (x, y, w, h) in enumerate(boxes):
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=("red", "lime")[index])
        masks[index, int(y) : int(y + h), int(x) : int(x + w)] = True
    objects = {
        "id": [1, 2],
        "bbox": boxes,
        "category": [0, 1],
        "area": [w * h for _, _, w, h in boxes],
        "iscrowd": [0, 0],
        "segmentation": list(masks),
    }
    return {"image": image, "image_id": 5, "width": size_wh[0], "height": size_wh[1], "objects": objects}


def identity_augment(row):
    return row


def drop_second_box_only(row):
    return {**row, "objects": {**row["objects"], "bbox": row["objects"]["bbox"][:1]}}


@pytest.mark.parametrize("processor_class", [DetrImageProcessor, StockProcessor])
def test_with_transform_gives_unpadded_pictures_and_labels_of_the_visible_picture(coco_dir, processor_class):
    dataset = load_detection_dataset(coco_dir)["train"]
    row = dataset.with_transform(DetectionTransform(small_processor(processor_class)))[0]
    assert row["pixel_values"].shape == (3, 60, 80)
    labels = row["labels"]
    assert labels["class_labels"].tolist() == [1, 0]
    assert labels["image_id"].tolist() == [100]
    assert labels["orig_size"].tolist() == [30, 40]
    x, y, w, h = np.array([box for _, box in SCENES["a"]]).T
    wanted = np.stack(((x + w / 2) / 40, (y + h / 2) / 30, w / 40, h / 30), axis=1)
    np.testing.assert_allclose(labels["boxes"], wanted, atol=1e-6)
    assert labels["area"].tolist() == pytest.approx([60 * 4, 150 * 4])


def test_a_slice_of_rows_is_transformed_as_each_row(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"].with_transform(DetectionTransform(small_processor()))
    several = dataset[:3]
    for index in range(3):
        assert torch.equal(several["pixel_values"][index], dataset[index]["pixel_values"])
        assert torch.equal(several["labels"][index]["boxes"], dataset[index]["labels"]["boxes"])
    assert several["labels"][2]["boxes"].shape == (0, 4)


def test_padding_never_moves_a_label_from_row_to_batch(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"].with_transform(DetectionTransform(small_processor()))
    alone = dataset[0]
    wide = {"pixel_values": torch.ones(3, 40, 200), "labels": alone["labels"]}
    batch = DetectionCollator()([alone, wide])
    assert torch.equal(batch["labels"][0]["boxes"], alone["labels"]["boxes"])
    assert torch.equal(batch["pixel_values"][0, :, :60, :80], alone["pixel_values"])


@pytest.mark.parametrize("augment", [None, "paper", identity_augment, [identity_augment, paper_augmentation(60)]])
def test_transforms_travel_to_worker_processes(augment):
    transform = DetectionTransform(small_processor(), augment)
    again = pickle.loads(pickle.dumps(transform))
    batch = {name: [value] for name, value in row_with_rectangles().items()}
    results = []
    for one in (transform, again):
        torch.manual_seed(3)
        results.append(one(dict(batch))["pixel_values"][0])
    assert torch.equal(*results)


def test_rows_without_objects_are_only_pictures():
    result = DetectionTransform(small_processor())({"image": [Image.new("RGB", (40, 30))], "image_id": [1]})
    assert list(result) == ["pixel_values"]


def test_a_picture_is_resized_once_by_the_papers_augmentation_and_after_any_other():
    batch = {name: [value] for name, value in row_with_rectangles().items()}
    processor = small_processor()
    assert DetectionTransform(processor, identity_augment)(dict(batch))["pixel_values"][0].shape == (3, 60, 80)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        seen.add(min(DetectionTransform(processor, "paper")(dict(batch))["pixel_values"][0].shape[1:]))
    assert len(seen) > 3
    assert max(seen) <= 60
    square = small_processor(size={"height": 48, "width": 48})
    assert DetectionTransform(square, "paper")(dict(batch))["pixel_values"][0].shape == (3, 48, 48)


def test_the_papers_scales_are_followed():
    augment = paper_augmentation()
    row = digit_scenes(1)[0]
    row["image"] = row["image"].resize((640, 480))
    row["objects"]["bbox"] = [[100.0, 100.0, 200.0, 200.0]]
    row["objects"] = {name: values[:1] for name, values in row["objects"].items()}
    sizes = []
    for seed in range(40):
        torch.manual_seed(seed)
        sizes.append(augment(row)["image"].size)
    assert {min(size) for size in sizes if max(size) < 1330} <= set(range(480, 801, 32))
    assert max(max(size) for size in sizes) <= 1333
    full = sum(abs(max(size) / min(size) - 4 / 3) < 0.01 for size in sizes)
    assert 8 <= full <= 32  # about half were cropped to another shape


@pytest.mark.parametrize("size_wh", [(120, 90), (50, 400), (7, 5)])
def test_the_size_of_an_augmented_picture_is_told_beforehand(size_wh):
    def twice(row):
        return {**row, "image": row["image"].resize((2 * row["image"].width, row["image"].height))}

    twice.final_hw = lambda size_hw: (size_hw[0], 2 * size_hw[1])
    exact = small_processor(size={"height": 48, "width": 40})
    transforms = [DetectionTransform(small_processor(), augment) for augment in (None, "paper", twice)]
    transforms += [DetectionTransform(small_processor(), [paper_augmentation(60), twice])]
    transforms += [DetectionTransform(exact, "paper"), DetectionTransform(small_processor(do_resize=False))]
    transforms += [DetectionTransform(small_processor(), [ColourJitter(), paper_augmentation(60)])]
    transforms += [DetectionTransform(small_processor(), "strong").with_rows([row_with_rectangles()])]
    batch = {name: [value] for name, value in row_with_rectangles(size_wh).items()}
    batch["objects"] = [{name: [] for name in batch["objects"][0]}]
    for transform in transforms:
        assert transform.tells_final_hw
        for seed in range(6):
            torch.manual_seed(seed)
            told = transform.final_hw(size_wh[::-1])
            torch.manual_seed(seed)
            assert transform(dict(batch))["pixel_values"][0].shape[1:] == told
    assert not DetectionTransform(small_processor(), [paper_augmentation(60), identity_augment]).tells_final_hw


def test_the_papers_picture_is_the_same_as_tensor_and_as_picture():
    augment = paper_augmentation(60)
    for seed in range(4):
        rows = []
        for as_tensor in (False, True):
            torch.manual_seed(seed)
            rows.append(augment(row_with_rectangles(), as_tensor=as_tensor))
        assert np.array_equal(np.asarray(rows[0]["image"]), rows[1]["image"].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("seed", range(8))
def test_boxes_masks_and_picture_move_together(seed):
    torch.manual_seed(seed)
    row = PaperAugmentation(shortest_edge=120, longest_edge=400)(row_with_rectangles())
    picture = np.asarray(row["image"]).astype(int)
    assert (row["width"], row["height"]) == row["image"].size
    columns = (row["objects"][name] for name in ("bbox", "category", "segmentation", "area"))
    for box, category, mask, area in zip(*columns, strict=True):
        x, y, w, h = box
        assert x >= 0
        assert y >= 0
        assert x + w <= row["width"] + 1e-3
        assert y + h <= row["height"] + 1e-3
        rows, columns = np.nonzero(picture[..., category] - picture[..., 1 - category] > 127)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(edges, (x, y, x + w, y + h), atol=1.01)
        assert area == pytest.approx(w * h, rel=1e-3)
        white = picture[..., category] - picture[..., 1 - category] > 127
        assert mask.shape == white.shape
        assert (mask != white).sum() <= 2 * (w + h) + 4  # at most a pixel along the edge


def test_objects_out_of_view_leave_with_all_their_columns():
    augment = PaperAugmentation(shortest_edge=200, longest_edge=800)
    counts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        row = row_with_rectangles((400, 90))
        row["objects"]["bbox"][1] = [390.0, 5.0, 8.0, 8.0]
        row["objects"]["area"][1] = 64.0
        result = augment(row)["objects"]
        counts.add(len(result["bbox"]))
        assert len({len(values) for values in result.values()}) == 1
        assert all(w > 0 and h > 0 for _, _, w, h in result["bbox"])
    assert 2 in counts
    assert counts & {0, 1}


def test_the_same_torch_seed_gives_the_same_augmentation():
    augment = paper_augmentation(120)
    results = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        results.append([augment(row_with_rectangles())["objects"]["bbox"] for _ in range(4)])
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "LA"])
def test_pictures_of_every_mode_are_augmented(mode):
    row = row_with_rectangles()
    row["image"] = row["image"].convert("L").convert(mode) if mode in ("LA", "1") else row["image"].convert(mode)
    torch.manual_seed(0)
    batch = {name: [value] for name, value in row.items()}
    assert DetectionTransform(small_processor(), "paper")(batch)["pixel_values"][0].shape[0] == 3


def test_sixteen_bit_images_keep_their_tones_in_the_papers_augmentation():
    row = row_with_rectangles()
    grey = np.arange(120 * 90, dtype=np.uint16).reshape(90, 120) % 256
    results = []
    for image in (Image.fromarray(grey.astype(np.uint8)).convert("RGB"), Image.fromarray(grey * 257)):
        torch.manual_seed(0)
        results.append(np.asarray(paper_augmentation(60)({**row, "image": image})["image"]))
    assert np.array_equal(*results)


def test_flip_gives_the_image_of_evaluation_or_its_mirror_image_and_no_other():
    row = row_with_rectangles()
    plain, flip = (DetectionTransform(small_processor(), augment) for augment in (None, "flip"))
    batch = {name: [value] for name, value in row.items()}
    expected = plain(batch)["pixel_values"][0]
    mirrored = []
    for seed in range(12):
        torch.manual_seed(seed)
        found = flip(batch)
        pixels, boxes = found["pixel_values"][0], found["labels"][0]["boxes"]
        mirrored.append(not torch.allclose(pixels, expected, atol=0.05))
        torch.testing.assert_close(pixels.flip(-1) if mirrored[-1] else pixels, expected, rtol=0, atol=0.05)
        centres = 1 - boxes[:, 0] if mirrored[-1] else boxes[:, 0]
        torch.testing.assert_close(centres, plain(batch)["labels"][0]["boxes"][:, 0], rtol=0, atol=0.01)
    assert {True, False} == set(mirrored)


def test_an_augmentation_that_forgets_a_column_is_named():
    transform = DetectionTransform(small_processor(), drop_second_box_only)
    batch = {name: [value] for name, value in row_with_rectangles().items()}
    with pytest.raises(ValueError, match=r"image_id 5: after augment drop_second_box_only: .*'bbox': 1, 'category': 2"):
        transform(batch)
    nothing = partial(lambda row: None)
    with pytest.raises(ValueError, match="must return a row with image, image_id and objects, got NoneType"):
        DetectionTransform(small_processor(), nothing)(batch)
    with pytest.raises(TypeError, match="augment must be 'paper'"):
        DetectionTransform(small_processor(), "weak")


def test_a_picture_that_cannot_be_decoded_is_named(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"]
    transform = DetectionTransform(small_processor())
    path = coco_dir / "train2017" / "b.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"image_id 101 \(.*b\.png\): the image cannot be decoded .*; replace the file"
    ):
        transform_dataset(dataset, transform)[1]
    path.unlink()
    with pytest.raises(ValueError, match=r"image_id 101 \(.*b\.png\): no such file"):
        transform_dataset(dataset, transform)[1]
    assert transform_dataset(dataset, transform)[0]["pixel_values"].shape == (3, 60, 80)


def test_a_picture_of_another_size_than_its_row_says_is_refused(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"].map(lambda row: {"width": 41})
    with pytest.raises(ValueError, match=r"image_id 100.*is 40 x 30 pixels but its row says 41 x 30"):
        dataset.with_transform(DetectionTransform(small_processor()))[0]


def test_streams_and_dicts_of_splits_are_transformed_like_data_sets(coco_dir):
    transform = DetectionTransform(small_processor())
    plain = transform_dataset(load_detection_dataset(coco_dir), transform)
    streamed = transform_dataset(load_detection_dataset(coco_dir, streaming=True), transform)
    for split in ("train", "validation"):
        rows = list(streamed[split])
        assert len(rows) == 3
        for row, wanted in zip(rows, plain[split], strict=True):
            # a stream keeps what a row is evaluated by, as nobody can go back for it
            assert set(row) == {"pixel_values", "labels", "image_id", "width", "height", "objects"}
            assert torch.equal(torch.as_tensor(row["pixel_values"]), wanted["pixel_values"])
        batch = DetectionCollator()(rows)
        assert batch["pixel_values"].shape == (3, 3, 60, 80)
        torch.testing.assert_close(batch["labels"][0]["boxes"], plain[split][0]["labels"]["boxes"])


def test_undecoded_and_decoded_columns_give_the_same(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"]
    transform = DetectionTransform(small_processor())
    undecoded = dataset.cast_column("image", ImageFeature(decode=False)).with_transform(transform)
    assert torch.equal(undecoded[1]["pixel_values"], dataset.with_transform(transform)[1]["pixel_values"])


def test_a_dropped_image_column_is_named(coco_dir):
    dataset = load_detection_dataset(coco_dir)["train"].remove_columns("image")
    with pytest.raises(ValueError, match=r"no column 'image'.*remove_unused_columns=False"):
        dataset.with_transform(DetectionTransform(small_processor()))[0]
