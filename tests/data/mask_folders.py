"""Folders of COCO's formats with masks, written from generated scenes."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage

from hf_detr.data.masks import decode_segmentation, encode_mask
from hf_detr.data.schema import class_names


def masks_of(row: dict) -> list[np.ndarray]:
    size_hw = row["height"], row["width"]
    return [decode_segmentation(one, size_hw) for one in row["objects"]["segmentation"]]


def _write(root: Path, splits: dict[str, Dataset], kind: str, annotations_of) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, scenes in splits.items():
        (root / split).mkdir()
        images, annotations, stuff = [], [], set()
        for row in scenes.cast_column("image", Image(decode=False)):
            name = f"{row['image_id']:06d}.png"
            (root / split / name).write_bytes(row["image"]["bytes"])
            images += [{"id": row["image_id"], "file_name": name, "width": row["width"], "height": row["height"]}]
            annotations += annotations_of(row, split, name)
            objects = row["objects"]
            pairs = zip(objects["category"], objects.get("is_thing", [True] * len(objects["id"])), strict=True)
            stuff |= {category for category, is_thing in pairs if not is_thing}
        categories = [{"id": 10 + i, "name": name} for i, name in enumerate(class_names(scenes))]
        if kind == "panoptic":
            categories = [{**one, "isthing": int(one["id"] - 10 not in stuff)} for one in categories]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    return root


def _columns(row: dict):
    objects = row["objects"]
    names = ("id", "bbox", "category", "area")
    return zip(*(objects[name] for name in names), strict=True)


def write_coco_folder(root: Path, splits: dict[str, Dataset]) -> Path:
    """COCO: the first object has a list of counts, the others a compressed run-length encoding."""

    def annotations_of(row, split, name):
        for (number, box, category, area), mask in zip(_columns(row), masks_of(row), strict=True):
            rle = rle_list(mask) if number == 1 else encode_mask(mask)
            rle = {name: rle[name] for name in ("size", "counts")}
            yield {
                "id": number, "image_id": row["image_id"], "category_id": 10 + category, "bbox": box, "area": area,
                "iscrowd": 0, "segmentation": rle,
            }  # fmt: skip

    return _write(root, splits, "instances", annotations_of)


def rle_list(mask: np.ndarray) -> dict:
    """COCO's uncompressed encoding: the lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def write_panoptic_folder(root: Path, splits: dict[str, Dataset]) -> Path:
    """COCO panoptic, PNG files beside the JSON in a folder of its name."""

    def annotations_of(row, split, name):
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir(exist_ok=True)
        ids = np.zeros((row["height"], row["width"]), dtype=np.int64)
        segments = []
        for (number, box, category, area), mask in zip(_columns(row), masks_of(row), strict=True):
            segment = 1000 + 300 * number  # more than one byte
            ids[mask > 0] = segment
            segments.append({"id": segment, "category_id": 10 + category, "bbox": box, "area": area, "iscrowd": 0})
        colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=-1).astype(np.uint8)
        PILImage.fromarray(colours).save(folder / name)
        yield {"image_id": row["image_id"], "file_name": name, "segments_info": segments}

    return _write(root, splits, "panoptic", annotations_of)
