"""The detections of one image as rows of JSON, which predictions.json holds and the server answers."""

from collections.abc import Mapping
from typing import Any

from ..boxes import xyxy_to_xywh
from ..data.masks import boxes_from_masks, encode_mask


def result_rows(detections: Mapping[str, Any], id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """The detections of one image, the surest first, as COCO results have them: {category_id, category, bbox xywh px,
    score}, and of masks `segmentation`, a compressed run-length encoding. Of segments also `id`, that in their map, and
    `area`."""
    if "segments_info" in detections:
        return _segment_rows(detections, id2label)
    order = detections["scores"].argsort(descending=True, stable=True)
    boxes_xywh_px = xyxy_to_xywh(detections["boxes"])[order].tolist()
    scores, labels = detections["scores"][order].tolist(), detections["labels"][order].tolist()
    masks = [detections["masks"][i] for i in order.tolist()] if "masks" in detections else None
    return [
        {"category_id": label, "category": id2label[label], "bbox": box, "score": score}
        | ({} if masks is None else {"segmentation": masks[i]})
        for i, (label, box, score) in enumerate(zip(labels, boxes_xywh_px, scores, strict=True))
    ]


def _segment_rows(result: Mapping[str, Any], id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for info in result["segments_info"]:  # several of one id were fused
        number, label = int(info["id"]), int(info["label_id"])
        if number in rows:
            rows[number]["score"] = max(rows[number]["score"], info["score"])
            continue
        mask = result["segmentation"] == number
        entry = encode_mask(mask)
        rows[number] = {
            "category_id": label,
            "category": id2label[label],
            "bbox": boxes_from_masks(mask[None])[0].tolist(),
            "score": info["score"],
            "segmentation": {name: entry[name] for name in ("size", "counts")},
            "id": number,
            "area": int(mask.sum()),
        }
    return sorted(rows.values(), key=lambda row: -row["score"])
