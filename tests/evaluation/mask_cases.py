"""Generated masks, segments and class maps for the evaluation tests, and what others make of them."""

import contextlib
import io
from collections import Counter

import numpy as np
from hotcoco import mask as coco_mask

SIZE_HW = (150, 200)
STUFF = (3, 4)  # of five classes


def encode(mask) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def ellipse(centre, radii, size_hw=SIZE_HW):
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1


def box_of(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if y.size else [0, 0, 0, 0]


def make_mask_case(seed: int, num_images: int = 10, num_classes: int = 4):
    """Results with encoded masks, and rows {image_id, height, width, annotations}, in every form of segmentation."""
    rng = np.random.default_rng(seed)
    results, rows = [], []
    for position in range(num_images):
        annotations, found = [], []
        for n in range(0 if position % 5 == 0 else int(rng.integers(1, 8))):
            centre, radii = rng.random(2) * SIZE_HW, rng.choice([9.0, 25.0, 70.0], 2) * rng.uniform(0.8, 1.2, 2)
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack((centre[1] + radii[1] * np.cos(angles), centre[0] + radii[0] * np.sin(angles)), axis=1)
            polygons = [np.clip(points, 0, SIZE_HW[::-1]).ravel().round(2).tolist()]
            [rle] = coco_mask.frPyObjects(polygons, *SIZE_HW)
            mask = coco_mask.decode(rle)
            if not mask.any():
                continue
            x0, y0, x1, y1 = (int(side) for side in box_of(mask))
            counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2)), prepend=0).tolist()
            forms = [polygons, encode(mask), {"size": list(SIZE_HW), "counts": counts}]
            annotations.append(
                {
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "category_id": int(rng.integers(0, num_classes - 1)),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": forms[n % 3],
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = ellipse(centre + rng.normal(0, 3, 2), radii * rng.uniform(0.8, 1.2, 2))
                found.append((annotations[-1]["category_id"], 0.3 + 0.7 * rng.random(), moved))
        for _ in range(4 if position % 10 != 3 else 0):
            stray = ellipse(rng.random(2) * SIZE_HW, rng.uniform(3, 60, 2))
            found.append((int(rng.integers(0, num_classes)), 0.7 * rng.random(), stray))
        rows.append(
            {"image_id": 1000 * position + 7, "height": SIZE_HW[0], "width": SIZE_HW[1], "annotations": annotations}
        )
        results.append(
            {
                "scores": np.array([score for _, score, _ in found], np.float32).round(1),
                "labels": np.array([label for label, _, _ in found], np.int64),
                "boxes": np.array([box_of(mask) for _, _, mask in found], np.float32).reshape(-1, 4),
                "masks": [encode(mask) for _, _, mask in found],
            }
        )
    return results, rows


def pycocotools_mask_metrics(results, rows, num_classes: int, class_id: int | None = None) -> list[float]:
    """The twelve numbers of pycocotools for masks, in its order."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, detections = [], []
    for result, row in zip(results, rows, strict=True):
        for item in row["annotations"]:
            annotations.append(item | {"id": len(annotations) + 1, "image_id": row["image_id"]})
        for score, label, mask in zip(result["scores"], result["labels"], result["masks"], strict=True):
            found = {"image_id": row["image_id"], "category_id": int(label), "score": float(score)}
            detections.append(found | {"segmentation": {**mask, "counts": mask["counts"].encode()}})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        images = [{"id": row["image_id"], "height": row["height"], "width": row["width"]} for row in rows]
        truth.dataset = {
            "images": images,
            "categories": [{"id": k} for k in range(num_classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        if class_id is not None:
            evaluation.params.catIds = [class_id]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def make_panoptic_case(seed: int, num_images: int = 8, num_classes: int = 5):
    """Results and targets of maps with their segments: things, stuff, crowds, unlabelled pixels, wrong classes."""
    rng = np.random.default_rng(seed)
    results, targets = [], []
    for position in range(num_images):
        truth, infos = np.zeros(SIZE_HW, np.int32), []

        def add(region, label, crowd=False, truth=truth, infos=infos, position=position):
            number = 10 * (len(infos) + 1) + position
            truth[region] = number
            infos.append({"id": number, "label": label, "is_thing": label not in STUFF, "iscrowd": int(crowd)})

        horizon = int(rng.integers(40, 110))
        add(np.arange(SIZE_HW[0])[:, None] < np.full(SIZE_HW, horizon), STUFF[0])
        if rng.random() < 0.7:
            add(np.arange(SIZE_HW[0])[:, None] >= np.full(SIZE_HW, horizon + 15), STUFF[1])
        for _ in range(int(rng.integers(0, 7))):
            shape = ellipse(rng.random(2) * SIZE_HW, rng.uniform(8, 50, 2))
            add(shape, int(rng.integers(0, 3)), rng.random() < 0.2)
        infos = [info for info in infos if (truth == info["id"]).any()]
        targets.append({"image_id": 3 * position, "segmentation": truth, "segments_info": infos})

        found, found_infos = np.zeros(SIZE_HW, np.int32), []
        shifted = np.roll(truth, rng.integers(-5, 6, 2), axis=(0, 1))
        for info in infos:
            region = shifted == info["id"]
            if rng.random() < 0.15 or not region.any():
                continue
            label = info["label"] if rng.random() < 0.8 else int(rng.integers(0, num_classes))
            found[region] = len(found_infos) + 1
            found_infos.append({"id": len(found_infos) + 1, "label_id": label, "was_fused": False, "score": 0.9})
        if rng.random() < 0.8:
            found[ellipse(rng.random(2) * SIZE_HW, rng.uniform(8, 30, 2))] = 99
            found_infos.append({"id": 99, "label_id": 0, "was_fused": False, "score": 0.9})
        found_infos = [info for info in found_infos if (found == info["id"]).any()]
        results.append({"segmentation": found, "segments_info": found_infos})
    return results, targets


def naive_panoptic_quality(results, targets, num_classes: int = 5) -> dict:
    """{class: (pq, sq, rq)} of the classes that occur, pair by pair (Kirillov et al. 2019, sections 4.1 and 4.2)."""
    iou_sum, tp, fp, fn = (Counter() for _ in range(4))
    for result, target in zip(results, targets, strict=True):
        found = {one["id"]: (one["label_id"], result["segmentation"] == one["id"]) for one in result["segments_info"]}
        truth = {
            one["id"]: (one["label"], target["segmentation"] == one["id"], one["iscrowd"])
            for one in target["segments_info"]
        }
        void, matched_found, matched_truth = target["segmentation"] == 0, set(), set()
        for f, (label, region) in found.items():
            for t, (true_label, true_region, crowd) in truth.items():
                if crowd or label != true_label:
                    continue
                intersection = (region & true_region).sum()
                union = region.sum() + true_region.sum() - intersection - (region & void).sum()
                if intersection / union > 0.5:
                    matched_found.add(f)
                    matched_truth.add(t)
                    iou_sum[label] += intersection / union
                    tp[label] += 1
        for t, (label, _, crowd) in truth.items():
            fn[label] += t not in matched_truth and not crowd
        for f, (label, region) in found.items():
            ignored = void.copy()
            for true_label, true_region, crowd in truth.values():
                ignored |= true_region & bool(crowd and true_label == label)
            fp[label] += f not in matched_found and (region & ignored).sum() / region.sum() <= 0.5
    qualities = {}
    for label in range(num_classes):
        if tp[label] + fp[label] + fn[label]:
            sq = iou_sum[label] / tp[label] if tp[label] else 0.0
            rq = tp[label] / (tp[label] + fp[label] / 2 + fn[label] / 2)
            qualities[label] = (sq * rq, sq, rq)
    return qualities


def make_semantic_case(seed: int, num_images: int = 8, num_classes: int = 5):
    """Found maps of classes, and targets with their true maps; 255 is not labelled."""
    rng = np.random.default_rng(seed)
    maps, targets = [], []
    for position in range(num_images):
        truth = rng.integers(0, num_classes - 1, (6, 8)).repeat(10, 0).repeat(10, 1)
        found = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, num_classes, truth.shape), truth)
        truth[rng.random(truth.shape) < 0.1] = 255
        maps.append(found)
        targets.append({"image_id": 5 * position, "segmentation": truth})
    return maps, targets
