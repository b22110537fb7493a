"""What is written beside an exported graph: how to run it, and what is known of it."""

from ..configuration_detr import DetrConfig
from .parity import Difference

INFERENCE_SCRIPT = '''"""Objects in an image, without torch: python inference.py IMAGE [THRESHOLD]; needs onnxruntime, numpy, Pillow."""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
names = json.loads((HERE / "config.json").read_text())["id2label"]
settings = json.loads((HERE / "preprocessor_config.json").read_text())


def resized(width, height):
    size = settings["size"]
    if "height" in size:
        return size["width"], size["height"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(width * scale)), max(1, int(height * scale))
    short, longest = size["shortest_edge"], size.get("longest_edge") or float("inf")
    scale = min(short / min(width, height), longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def detect(path, threshold=0.5):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    small = image.resize(resized(*image.size), Image.Resampling(settings["resample"]))
    pixels = (np.asarray(small) * settings["rescale_factor"] - settings["image_mean"]) / settings["image_std"]
    pixels = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    mask = np.ones((1, *pixels.shape[2:]), np.int64)
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    logits, boxes = session.run(["logits", "pred_boxes"], {"pixel_values": pixels, "pixel_mask": mask})
    chances = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    chances = (chances / chances.sum(-1, keepdims=True))[:, :-1]  # the last class is "no object"
    centre, half = boxes[0, :, :2], boxes[0, :, 2:] / 2
    corners = np.concatenate((centre - half, centre + half), axis=1) * np.array([*image.size, *image.size])
    order = [i for i in np.argsort(-chances.max(-1)) if chances[i].max() > threshold]
    return [(names[str(chances[i].argmax())], float(chances[i].max()), corners[i].tolist()) for i in order]


if __name__ == "__main__":
    for name, score, (left, top, right, bottom) in detect(sys.argv[1], *map(float, sys.argv[2:3])):
        print(f"{name}\\t{score:.3f}\\t{left:.1f}\\t{top:.1f}\\t{right:.1f}\\t{bottom:.1f}")
'''

_HOW = {
    "onnx": "`python inference.py IMAGE` prints one object a line: name, score, left, top, right, bottom in pixels.",
    "openvino": "`openvino.Core().read_model(...)` reads it.",
    "executorch": "The ExecuTorch runtime loads it.",
    "torch": "`torch.export.load(...)` reads it; a .pt2 is a pickle, so only load one that you trust.",
}


def card(format: str, config: DetrConfig, worst: Difference, size_bytes: int, post_process: bool) -> str:
    """The README.md of an exported folder."""
    inputs = "`pixel_values` (batch, channels, height, width) float32, `pixel_mask` (batch, height, width) int64"
    outputs = "`logits` (batch, queries, classes + 1), `pred_boxes` (batch, queries, 4) cxcywh of the visible image"
    if post_process:
        inputs += ", `target_sizes` (batch, 2) float32, heights and widths in pixels"
        outputs = "`scores` and `labels` (batch, queries), `boxes` (batch, queries, 4) xyxy in pixels"
    how = "" if post_process and format == "onnx" else _HOW[format] + "\n\n"
    return (
        f"# DETR, exported as {format}\n\n{how}"
        f"- Inputs: {inputs}; batch, height and width are free.\n"
        f"- Outputs: {outputs}.\n"
        f"- {config.num_labels} {'class' if config.num_labels == 1 else 'classes'}, {config.num_queries} queries, "
        f"{size_bytes / 1e6:.1f} MB. Names of the classes: config.json.\n"
        f"- Compared with the model on three inputs it was not traced with: the largest difference is {worst.value:.1e} "
        f"({worst.output}, {worst.where}).\n"
    )
