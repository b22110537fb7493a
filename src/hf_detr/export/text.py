"""What is written beside an exported graph: how to run it, and what is known of it."""

from ..configuration_detr import DetrConfig
from .parity import Difference

_RUNTIMES = {
    "onnx": (
        "onnxruntime",
        'session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])',
        'session.run(["logits", "pred_boxes"], inputs)',
    ),
    "openvino": (
        "openvino",
        'session = openvino.Core().compile_model(HERE / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        '(session(inputs)[name] for name in ("logits", "pred_boxes"))',
    ),
}
_SCRIPT = '''"""Objects in an image, without torch: python inference.py IMAGE [THRESHOLD].

Needs {package}, numpy and Pillow. One object a line: name, score, left, top, right, bottom in pixels; those of a score
above THRESHOLD, without it above the one saved for their class in preprocessor_config.json, or 0.5.
"""

import json
import sys
from pathlib import Path

import numpy as np
import {package}
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
names = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["id2label"]
settings = json.loads((HERE / "preprocessor_config.json").read_text(encoding="utf-8"))
thresholds = settings.get("class_thresholds", {{}})
{load}


def resized(width, height):
    size = settings["size"]
    if "height" in size:
        return size["width"], size["height"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
    else:
        scale = size["shortest_edge"] / min(width, height)
        scale = min(scale, (size.get("longest_edge") or np.inf) / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def detect(path, threshold=None):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    pixels = np.asarray(image.resize(resized(*image.size), Image.Resampling(settings["resample"])))
    pixels = (pixels * settings["rescale_factor"] - settings["image_mean"]) / settings["image_std"]
    pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    inputs = {{"pixel_values": pixels, "pixel_mask": np.ones((1, *pixels.shape[2:]), np.int64)}}
    logits, boxes = (output[0] for output in {run})
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores = (scores / scores.sum(-1, keepdims=True))[:, :-1]  # the last class is "no object"
    corners = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
    corners *= [*image.size, *image.size]
    for query in np.argsort(-scores.max(-1)):
        label, score = str(scores[query].argmax()), scores[query].max()
        if score > (thresholds.get(label, 0.5) if threshold is None else threshold):
            yield names[label], score, corners[query]


if __name__ == "__main__":
    for name, score, corners in detect(sys.argv[1], *map(float, sys.argv[2:3])):
        print(name, f"{{score:.3f}}", *(f"{{value:.1f}}" for value in corners), sep="\\t")
'''


def inference_script(format: str) -> str | None:
    """The text of `inference.py`; None for formats that torch itself runs."""
    if format not in _RUNTIMES:
        return None
    package, load, run = _RUNTIMES[format]
    return _SCRIPT.format(package=package, load=load, run=run)


_HOW = {
    "executorch": "The ExecuTorch runtime loads it.",
    "torch": "`torch.export.load` reads it; a .pt2 is a pickle, so load only one that you trust.",
}


def card(format: str, config: DetrConfig, worst: Difference, size_bytes: int, post_process: bool) -> str:
    """The README.md of an exported folder."""
    how = _HOW.get(format)
    if how is None:
        how = f"{_RUNTIMES[format][0]} runs it."
        if not post_process:
            how = f"`python inference.py IMAGE` needs {_RUNTIMES[format][0]}, numpy and Pillow."
    inputs = "`pixel_values` (batch, channels, height, width) float32, `pixel_mask` (batch, height, width) int64"
    outputs = "`logits` (batch, queries, classes + 1), `pred_boxes` (batch, queries, 4) cxcywh of the visible image"
    if post_process:
        inputs += ", `target_sizes` (batch, 2) float32, heights and widths in pixels"
        outputs = "`scores` and `labels` (batch, queries), `boxes` (batch, queries, 4) xyxy in pixels"
    classes = "1 class" if config.num_labels == 1 else f"{config.num_labels} classes"
    return (
        f"# DETR, exported as {format}\n\n{how}\n\n"
        f"- Inputs: {inputs}; batch, height and width are free.\n"
        f"- Outputs: {outputs}.\n"
        f"- {classes} (names in config.json), {config.num_queries} queries, {size_bytes / 1e6:.1f} MB, float32.\n"
        "- Compared with the model on three inputs it was not traced with, one padded: the largest difference is "
        f"{worst.value:.1e} ({worst.output}, {worst.where}).\n"
    )
