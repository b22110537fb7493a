"""The text of `inference.py`, which finds objects with an exported graph and without torch."""

from typing import NamedTuple

from .graph import DetectorGraph


class _Runtime(NamedTuple):
    package: str
    load: str
    run: str


RUNTIMES = {
    "onnx": _Runtime(
        "onnxruntime",
        'session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])',
        "dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))",
    ),
    "openvino": _Runtime(
        "openvino",
        'session = openvino.Core().compile_model(HERE / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "{output.get_any_name(): values for output, values in session(inputs).items()}",
    ),
}
_START = '''"""Objects in an image, without torch: python inference.py IMAGE [THRESHOLD]%(usage)s.

Needs %(package)s, numpy and Pillow. One object a line: name, score, left, top, right, bottom in pixels; those of a
score above THRESHOLD, without it above the one saved for their class in preprocessor_config.json, or 0.5.
%(about_masks)s"""

import json
import sys
from pathlib import Path

import numpy as np
import %(package)s
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
names = json.loads((HERE / "config.json").read_text(encoding="utf-8"))["id2label"]
settings = json.loads((HERE / "preprocessor_config.json").read_text(encoding="utf-8"))
thresholds = settings.get("class_thresholds") or {}
%(load)s


def opened(path):
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"inference.py: {path}: no image that can be read ({error}).")
    if image.mode[0] in "IF":
        sys.exit(f"inference.py: {path}: grey with more than 8 bits a pixel; save it with 8.")
    return (ImageOps.exif_transpose(image) if settings["do_exif_transpose"] else image).convert("RGB")


def resized(width, height):
    size = settings["size"]
    if not settings["do_resize"]:
        return width, height
    if "height" in size:
        return size["width"], size["height"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
    else:
        scale = size["shortest_edge"] / min(width, height)
        scale = min(scale, (size.get("longest_edge") or np.inf) / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def detect(path, threshold=None):
    image = opened(path)
    pixels = np.asarray(image.resize(resized(*image.size), Image.Resampling(settings["resample"])), np.float64)
    if settings["do_rescale"]:
        pixels = pixels * settings["rescale_factor"]
    if settings["do_normalize"]:
        pixels = (pixels - settings["image_mean"]) / settings["image_std"]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
    inputs = {"pixel_values": pixels, "pixel_mask": np.ones((1, *pixels.shape[2:]), np.int64)}
'''
_LOGITS = """    outputs = %(run)s
    logits, boxes = outputs["logits"][0], outputs["pred_boxes"][0]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares = (shares / shares.sum(-1, keepdims=True))[:, :-1]  # the last class is "no object"
    scores, labels = shares.max(-1), shares.argmax(-1)
    boxes = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
    boxes = boxes * [*image.size, *image.size]
"""
_POST_PROCESSED = """    inputs["target_sizes"] = np.array([image.size[::-1]], np.float32)
    outputs = %(run)s
    scores, labels, boxes = (outputs[name][0] for name in ("scores", "labels", "boxes"))
"""
_END = """    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        sys.exit(f"inference.py: {path}: the outputs hold a NaN or an infinity, which is no detection.")
    for query in np.argsort(-scores):
        label = str(labels[query])
        if scores[query] > (thresholds.get(label, 0.5) if threshold is None else threshold):
%(result)s


if __name__ == "__main__":
    try:
        threshold = float(sys.argv[2]) if len(sys.argv) > 2 else None
    except ValueError:
        sys.exit(f"inference.py: THRESHOLD {sys.argv[2]}: expected a number from 0 to 1.")
    if not 2 <= len(sys.argv) <= %(most)s or not 0 <= (threshold or 0) <= 1:
        sys.exit(__doc__.splitlines()[0])
    found = list(detect(sys.argv[1], threshold))
    for name, score, box, *_ in found:
        print(name, f"{score:.3f}", *(f"{value:.1f}" for value in box), sep="\\t")
"""
_RESULT = "            yield names[label], scores[query], boxes[query]"
_WITH_MASK = """            mask = Image.fromarray(outputs["pred_masks"][0][query])
            mask = np.asarray(mask.resize(image.size, Image.Resampling.BILINEAR)) > 0
            yield names[label], scores[query], boxes[query], mask"""
_MAP = """    if len(sys.argv) > 3:
        numbers = np.zeros(opened(sys.argv[1]).size[::-1], np.uint8)
        for number, (*_, mask) in reversed(list(enumerate(found[:255], 1))):
            numbers[mask] = number
        Image.fromarray(numbers).save(sys.argv[3])
"""
_ABOUT_MASKS = """With MAP.png the masks are written: the value of a pixel is the number of its object, 1 for the first
line and 0 for none; the first of several has it.
"""


def inference_script(format: str, graph: DetectorGraph) -> str | None:
    """Its text; None for formats that torch itself runs, and for images of other than three channels."""
    if format not in RUNTIMES or graph.config.num_channels != 3:
        return None
    masks = graph.has_masks
    text = _START + (_POST_PROCESSED if graph.post_process else _LOGITS) + _END + (_MAP if masks else "")
    parts = {"result": _WITH_MASK if masks else _RESULT, "most": "4" if masks else "3"}
    parts |= {"usage": " [MAP.png]", "about_masks": _ABOUT_MASKS} if masks else {"usage": "", "about_masks": ""}
    return text % (parts | RUNTIMES[format]._asdict())
