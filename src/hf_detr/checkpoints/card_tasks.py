"""What the card of a model says differently of each task: names on the Hub, measures, and how to use it."""

from dataclasses import dataclass

_AP = {
    "map": "AP (IoU 0.50 to 0.95)",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP small (up to 32 x 32 px)",
    "map_medium": "AP medium (up to 96 x 96 px)",
    "map_large": "AP large",
}
_PQ = {
    f"{key}{suffix}": f"{key.upper()}{group}"
    for suffix, group in {"": "", "_things": " things", "_stuff": " stuff"}.items()
    for key in ("pq", "sq", "rq")
}


@dataclass(frozen=True)
class CardTask:
    """Words for one task.

    Attributes:
        tag: the Hub's pipeline tag, and transformers' pipeline.
        noun: what the model is.
        measure: what is measured, in words; `metric_type`: the Hub's name of it.
        metrics: key of the evaluation -> name; `on_the_hub`: those that go into model-index.
        columns: of the table of classes, key -> head; `counted`: what the last column counts.
        model_class, call: of the snippet; `pipeline`: the lines for stock transformers.
    """

    tag: str
    noun: str
    measure: str
    metric_type: str
    metrics: dict[str, str]
    on_the_hub: tuple[str, ...]
    columns: dict[str, str]
    counted: str
    model_class: str
    call: str
    pipeline: str


_BOX_LOOP = """\
found = processor.post_process_object_detection(outputs, threshold={threshold}, target_sizes=[image.size[::-1]])[0]
for score, label, box in zip(found["scores"], found["labels"], found["boxes"]):
    print(model.config.id2label[label.item()], f"{{score:.2f}}", box.tolist())  # xyxy, pixels"""
_MASK_LOOP = """\
found = processor.post_process_masks(outputs, threshold={threshold}, target_sizes=[image.size[::-1]])[0]
for score, label, mask in zip(found["scores"], found["labels"], found["masks"]):
    print(model.config.id2label[label.item()], f"{{score:.2f}}", mask)  # COCO's run-length encoding"""
_SEGMENT_LOOP = """\
found = processor.post_process_panoptic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
for segment in found["segments_info"]:
    covered = (found["segmentation"] == segment["id"]).sum().item()
    print(model.config.id2label[segment["label_id"]], f"{{segment['score']:.2f}}", covered, "pixels")"""

_SEGMENTER = """\
segmenter = pipeline("image-segmentation", model="{{repo}}")
print(segmenter("image.jpg", subtask="{}", threshold={{threshold}}))"""
_AP_COLUMNS = {"map": "AP", "map_50": "AP50"}
CARD_TASKS = {
    "detection": CardTask(
        "object-detection", "object detector", "COCO average precision", "mean_average_precision", _AP,
        ("map", "map_50", "map_75"), _AP_COLUMNS, "object", "DetrForObjectDetection", _BOX_LOOP,
        'detector = pipeline("object-detection", model="{repo}")\nprint(detector("image.jpg", threshold={threshold}))',
    ),
    "instance": CardTask(
        "image-segmentation", "model for instance segmentation", "COCO average precision of masks",
        "mean_average_precision", {key: f"mask {name}" for key, name in _AP.items()}, ("map", "map_50", "map_75"),
        _AP_COLUMNS, "object", "DetrForSegmentation", _MASK_LOOP,
        _SEGMENTER.format("instance"),
    ),
    "panoptic": CardTask(
        "image-segmentation", "model for panoptic segmentation", "Panoptic quality", "panoptic_quality", _PQ,
        ("pq", "sq", "rq"), {"pq": "PQ", "sq": "SQ", "rq": "RQ"}, "segment", "DetrForSegmentation", _SEGMENT_LOOP,
        _SEGMENTER.format("panoptic"),
    ),
}  # fmt: skip
