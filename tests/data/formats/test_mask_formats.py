"""The smallest example of every form in which masks come; docs/data.md lists them."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_detr import DetectionCollator, DetectionTransform, DetrImageProcessor, transform_dataset
from hf_detr.data.checks import check_dataset
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.masks import decode_segmentation, encode_mask
from hf_detr.data.schema import has_masks, is_detection_dataset

from ..mask_folders import rle_list
from ..tiny_data import SCENES, SIZE_WH, coco_content, voc_xml, write_pictures

WIDTH, HEIGHT = SIZE_WH


def rectangle(box) -> np.ndarray:
    x, y, w, h = map(int, box)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def polygon(box) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rle_text(box) -> dict:
    entry = encode_mask(rectangle(box))
    return {"size": entry["size"], "counts": entry["counts"]}


def write_coco(root, segmentation_of):
    write_pictures(root / "train")
    content = coco_content()
    for one in content["annotations"]:
        one["segmentation"] = segmentation_of(one["bbox"])
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


def coco_polygons(root):
    write_coco(root, lambda box: [polygon(box)])


def coco_uncompressed(root):
    write_coco(root, lambda box: rle_list(rectangle(box)))


def coco_compressed(root):
    write_coco(root, rle_text)


def yolo(root):
    write_pictures(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    for stem, objects in SCENES.items():
        lines = []
        for name, box in objects:
            fractions = [value / (HEIGHT if k % 2 else WIDTH) for k, value in enumerate(polygon(box))]
            lines.append(" ".join([str(("cat", "dog").index(name)), *(f"{value:.6f}" for value in fractions)]))
        (root / "labels" / "train" / f"{stem}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")


def segments(objects, ids) -> np.ndarray:
    """(height, width) ids, later objects behind earlier ones."""
    image = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    for (_, box), number in reversed(list(zip(objects, ids, strict=True))):
        image[rectangle(box) > 0] = number
    return image


def voc(root):
    write_pictures(root / "JPEGImages")
    for folder in ("Annotations", "SegmentationObject"):
        (root / folder).mkdir()
    for stem, objects in SCENES.items():
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, objects))
        image = Image.fromarray(segments(objects, range(1, len(objects) + 1)).astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
        image.save(root / "SegmentationObject" / f"{stem}.png")


PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # background, cat, dog


def voc_masks(root, with_objects=True):
    """As CVAT writes them: colours of classes in labelmap.txt, no XML."""
    voc(root)
    for path in (root / "Annotations").iterdir():
        path.unlink()
    (root / "SegmentationClass").mkdir()
    for stem, objects in SCENES.items():
        number = segments(objects, [("cat", "dog").index(name) + 1 for name, _ in objects])
        image = Image.fromarray(np.array(PALETTE, dtype=np.uint8).reshape(-1, 3)[number])
        image.save(root / "SegmentationClass" / f"{stem}.png")
        if not with_objects:
            (root / "SegmentationObject" / f"{stem}.png").unlink()
    if not with_objects:
        (root / "SegmentationObject").rmdir()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("a\nb\nempty\n")
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    (root / "labelmap.txt").write_text(label_map)


def panoptic(root):
    write_pictures(root / "train")
    content = coco_content()
    annotations = []
    (root / "annotations" / "panoptic_train").mkdir(parents=True)
    for image, (stem, objects) in zip(content["images"], SCENES.items(), strict=True):
        ids = [7 + 300 * k for k in range(len(objects))]
        number = segments(objects, ids)
        colours = np.stack((number % 256, number // 256, 0 * number), axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(root / "annotations" / "panoptic_train" / f"{stem}.png")
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        listed = [{**one, "id": k} for one, k in zip(own, ids, strict=True)]
        annotations.append({"image_id": image["id"], "file_name": f"{stem}.png", "segments_info": listed})
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps({**content, "annotations": annotations}))


def hub_polygons(root):
    write_pictures(root / "train")
    lines = []
    for stem, objects in SCENES.items():
        columns = {
            "bbox": [list(box) for _, box in objects],
            "category": [name for name, _ in objects],
            "segmentation": [[polygon(box)] for _, box in objects],
        }
        lines.append(json.dumps({"file_name": f"{stem}.png", "objects": columns}))
    (root / "train" / "metadata.jsonl").write_text("\n".join(lines))


def hub_encodings(root):
    """Without boxes: they are made from the masks."""
    write_pictures(root)
    rle = {"size": List(Value("int32")), "counts": Value("string")}
    features = {"image": ImageFeature(), "objects": {"segmentation": List(rle), "label": List(Value("string"))}}
    columns = {"image": [str(root / f"{stem}.png") for stem in SCENES], "objects": []}
    for objects in SCENES.values():
        names, boxes = [name for name, _ in objects], [box for _, box in objects]
        columns["objects"].append({"segmentation": [rle_text(box) for box in boxes], "label": names})
    return Dataset.from_dict(columns, features=Features(features))


def saved(root):
    coco_compressed(root)
    load_detection_dataset(root).save_to_disk(root / "saved")
    return root / "saved"


FORMS = [coco_polygons, coco_uncompressed, coco_compressed, yolo, voc, voc_masks, panoptic, hub_polygons,
         hub_encodings, saved]  # fmt: skip


def by_name(split) -> list[dict]:
    rows = split.cast_column("image", ImageFeature(decode=False))
    return sorted(rows, key=lambda row: row["image"]["path"].split("/")[-1])


@pytest.mark.parametrize("write", FORMS)
def test_masks_of_every_form_are_the_same_masks(tmp_path, write):
    source = write(tmp_path)
    source = tmp_path if source is None else source
    data = load_detection_dataset(source)
    assert has_masks(data)
    assert is_detection_dataset(data["train"])
    for row, objects in zip(by_name(data["train"]), SCENES.values(), strict=True):
        assert np.allclose(row["objects"]["bbox"], [box for _, box in objects], atol=1e-4)
        masks = [decode_segmentation(one, (HEIGHT, WIDTH)) for one in row["objects"]["segmentation"]]
        assert len(masks) == len(objects)
        assert all(np.array_equal(mask, rectangle(box)) for mask, (_, box) in zip(masks, objects, strict=True))
    report = check_dataset(source, masks=True)
    assert report.errors == []
    assert report.splits["train"].masks == 3
    options = {"class_names": ["cat", "dog"]} if write in (hub_polygons, hub_encodings) else {}
    source = source.to_iterable_dataset() if write is hub_encodings else source
    streamed = load_detection_dataset(source, streaming=True, **options)
    assert [row["objects"] for row in streamed["train"]] == [row["objects"] for row in data["train"]]

    transform = DetectionTransform(DetrImageProcessor(size={"height": HEIGHT, "width": WIDTH}), masks=True)
    batch = DetectionCollator()(list(transform_dataset(data["train"], transform)))
    labels = sorted(batch["labels"], key=lambda label: len(label["class_labels"]))  # empty, b, a
    assert [label["masks"].shape for label in labels] == [(count, HEIGHT, WIDTH) for count in (0, 1, 2)]
    wanted = torch.from_numpy(np.stack([rectangle(box) for _, box in SCENES["a"]]))
    assert torch.equal(labels[2]["masks"], wanted)


@pytest.mark.parametrize("write", [coco_polygons, yolo, voc, panoptic, hub_polygons, saved])
def test_without_masks_nothing_of_them_is_read(tmp_path, write):
    source = write(tmp_path) or tmp_path
    plain = load_detection_dataset(source, masks=False)
    assert not has_masks(plain)
    assert is_detection_dataset(plain["train"])
    for row, wanted in zip(plain["train"], load_detection_dataset(source)["train"], strict=True):
        wanted["objects"].pop("segmentation")
        assert row["objects"] == wanted["objects"]


def test_a_detection_model_decodes_no_mask(tmp_path):
    panoptic(tmp_path)
    data = load_detection_dataset(tmp_path)["train"]
    for path in (tmp_path / "annotations" / "panoptic_train").iterdir():
        path.unlink()
    processor = DetrImageProcessor(size={"height": HEIGHT, "width": WIDTH})
    items = list(transform_dataset(data, DetectionTransform(processor, augment="paper")))
    assert all("masks" not in item["labels"] for item in items)
    with pytest.raises(ValueError, match=r"image_id 100.*object 0: .*a\.png: no such PNG of masks"):
        transform_dataset(data, DetectionTransform(processor, masks=True))[0]


def test_classes_of_masks_alone_are_stuff_and_numbered_by_palette_or_label_map(tmp_path):
    voc_masks(tmp_path, with_objects=False)
    data = load_detection_dataset(tmp_path)["train"]
    assert data.features["objects"]["category"].feature.names == ["cat", "dog"]
    assert [row["objects"]["category"] for row in data] == [[0, 1], [1], []]
    assert [row["objects"]["is_thing"] for row in data] == [[False, False], [False], []]
    masks = [decode_segmentation(one, (HEIGHT, WIDTH)) for one in data[0]["objects"]["segmentation"]]
    assert all(np.array_equal(mask, rectangle(box)) for mask, (_, box) in zip(masks, SCENES["a"], strict=True))
    for path in (tmp_path / "SegmentationClass").iterdir():
        colours = np.asarray(Image.open(path))
        index = Image.fromarray((colours[..., 0] // 128 + colours[..., 1] // 64).astype(np.uint8), mode="P")
        index.putpalette(PALETTE + [0] * 759)
        index.save(path)
    again = load_detection_dataset(tmp_path)["train"]
    assert [row["objects"]["bbox"] for row in again] == [row["objects"]["bbox"] for row in data]
    (tmp_path / "labelmap.txt").unlink()
    with pytest.raises(ValueError, match=r"no labelmap\.txt that names the classes; pass class_names"):
        load_detection_dataset(tmp_path)
    with (tmp_path / "ImageSets" / "Segmentation" / "default.txt").open("a") as listing:
        listing.write("../a\n")
    with pytest.raises(ValueError, match=r"default\.txt: no SegmentationClass/\.\./a\.png"):
        load_detection_dataset(tmp_path, class_names=["cat", "dog"])
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").unlink()
    named = load_detection_dataset(tmp_path, class_names=["cat", "dog"])["train"]
    assert [row["objects"]["category"] for row in named] == [[0, 1], [1], []]
    with pytest.raises(ValueError, match=r"SegmentationClass/a\.png: the index 2 is that of no class"):
        load_detection_dataset(tmp_path, class_names=["cat"])


# ---- panoptic data


def change_panoptic(root, change):
    path = root / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_things_and_stuff_are_told_apart_by_their_category(tmp_path):
    panoptic(tmp_path)
    change_panoptic(tmp_path, lambda content: content["categories"][1].update(isthing=0))
    data = load_detection_dataset(tmp_path)
    assert data["train"].features["objects"]["is_thing"] == List(Value("bool"))
    assert [row["objects"]["is_thing"] for row in data["train"]] == [[True, False], [False], []]
    assert data["train"][0]["objects"]["id"] == [1, 2]


def test_instances_come_before_panoptic_files_unless_asked_for(tmp_path):
    panoptic(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(coco_content()))
    assert not has_masks(load_detection_dataset(tmp_path))
    assert has_masks(load_detection_dataset(tmp_path, format="panoptic"))
    assert has_masks(load_detection_dataset(tmp_path / "annotations" / "panoptic_train.json"))


def test_segments_without_a_box_have_the_one_around_them(tmp_path):
    panoptic(tmp_path)

    def without_boxes(content):
        for entry in content["annotations"]:
            for segment in entry["segments_info"]:
                del segment["bbox"], segment["area"]

    change_panoptic(tmp_path, without_boxes)
    boxes = [row["objects"]["bbox"] for row in load_detection_dataset(tmp_path, masks=False)["train"]]
    assert boxes == [[list(box) for _, box in objects] for objects in SCENES.values()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].pop("segments_info"), r"annotations\[0\]: expected file_name, of a PNG"),
        (lambda c: c["annotations"][1].update(file_name=3), r"annotations\[1\]: expected file_name, of a PNG"),
        (
            lambda c: c["annotations"][0].update(image_id=5),
            r"annotations\[0\].segments_info\[0\]\): image_id 5 is none",
        ),
        (lambda c: c["annotations"][0]["segments_info"][1].update(category_id=99), r"\[1\]\) of a\.png: unknown categ"),
        (lambda c: c["annotations"][0]["segments_info"].append(3), r"annotations\[0\].segments_info\[2\]: expected an"),
    ],
)
def test_what_is_wrong_in_a_panoptic_file_is_named(tmp_path, change, message):
    panoptic(tmp_path)
    change_panoptic(tmp_path, change)
    with pytest.raises(ValueError, match=rf"panoptic_train\.json: .*{message}"):
        load_detection_dataset(tmp_path)
