"""Generated detections and ground truth for the evaluation tests, and what pycocotools makes of them."""

import contextlib
import io

import numpy as np

NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
NAMES += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")


def make_case(seed: int, num_images: int = 25, num_classes: int = 4, *, crowds: bool = True, ties: bool = True):
    """Results and rows {image_id, annotations}; some images without targets, without detections, and with neither."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(num_images * 3)[:num_images] * 1000 + 7  # neither in order nor without gaps
    results, rows = [], []
    for position, image_id in enumerate(image_ids.tolist()):
        num_targets = 0 if position % 5 == 0 else int(rng.integers(1, 12))
        sides = rng.choice([rng.uniform(5, 30), 32.0, rng.uniform(40, 90), 96.0, 150.0], (num_targets, 2))
        boxes = np.concatenate((rng.integers(0, 300, (num_targets, 2)), sides), axis=1)
        labels = rng.integers(0, num_classes - 1, num_targets)  # the last class has no target
        annotations = [
            {
                "bbox": box.tolist(),
                "category_id": int(label),
                "area": float(box[2] * box[3] * rng.choice([1.0, 0.7])),  # of a mask, as in COCO
                "iscrowd": int(crowds and rng.random() < 0.15),
            }
            for box, label in zip(boxes, labels, strict=True)
        ]
        rows.append({"image_id": image_id, "annotations": annotations})

        copies = np.repeat(np.arange(num_targets), rng.integers(0, 4, num_targets))
        found = boxes[copies] + rng.normal(0, 3, (len(copies), 4))
        found[:, 2:] = np.abs(found[:, 2:])
        strays = np.concatenate((rng.uniform(0, 300, (6, 2)), rng.uniform(3, 120, (6, 2))), axis=1)
        found = np.concatenate((found, strays)) if position % 10 not in (0, 3) else found[:0]
        found_labels = np.concatenate((labels[copies], rng.integers(0, num_classes, 6)))[: len(found)]
        scores = np.where(np.arange(len(found)) < len(copies), 0.3, 0) + 0.7 * rng.random(len(found))
        scores = np.round(scores, 1) if ties else scores
        boxes_xyxy = np.concatenate((found[:, :2], found[:, :2] + found[:, 2:]), axis=1).astype(np.float32)
        results.append({"scores": scores.astype(np.float32), "labels": found_labels, "boxes": boxes_xyxy})
    return results, rows


def pycocotools_metrics(results, rows, num_classes: int, max_dets=(1, 10, 100), class_id: int | None = None) -> dict:
    """The twelve numbers of pycocotools, or those of one class; mar_10 is the middle of `max_dets`, whatever it is."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, detections = [], []
    for result, row in zip(results, rows, strict=True):
        for item in row["annotations"]:
            annotations.append(item | {"id": len(annotations) + 1, "image_id": row["image_id"]})
        boxes = np.asarray(result["boxes"], dtype=np.float64).reshape(-1, 4)
        boxes_xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        for box, score, label in zip(boxes_xywh, result["scores"], result["labels"], strict=True):
            detections.append(
                {
                    "image_id": row["image_id"],
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "score": float(score),
                    "area": float(box[2] * box[3]),
                    "id": len(detections) + 1,
                    "iscrowd": 0,
                }
            )
    common = {
        "images": [{"id": row["image_id"]} for row in rows],
        "categories": [{"id": k} for k in range(num_classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = common | {"annotations": annotations}, common | {"annotations": detections}
        truth.createIndex()
        found.createIndex()  # loadRes cannot take an empty list
        evaluation = COCOeval(truth, found, "bbox")
        if class_id is not None:
            evaluation.params.catIds = [class_id]
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = dict(zip(NAMES, map(float, evaluation.stats), strict=True))
    if 100 not in max_dets:  # the first number looks for 100 by name
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        stats["map"] = float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
    return stats
