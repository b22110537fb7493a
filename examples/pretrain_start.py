"""Pre-train the transformer of a start on generated scenes, so that a detector of a few hundred photographs begins with
a transformer that finds objects. The network that sees, ImageNet's, stays as it is.

    python examples/start_from_efficientnet.py --voc DATA --transformer tiny --output runs/start
    python examples/pretrain_start.py --start runs/start --minutes 5 --output runs/transformer     # on a GPU
    python examples/start_from_efficientnet.py --voc DATA --transformer runs/transformer/transformer.safetensors

Scenes have up to 30 shapes of ten classes, with textures and colours of their own, over textures and crops of the two
photographs that scikit-learn carries. What is written leaves out the backbone and the class head, in float16. The
transformer that ships in the package, `hf_detr.imagenet_start`, was made so.
"""

import argparse
import json
import math
import time
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file
from tqdm.auto import tqdm

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.training import MuonAdamW, parameter_groups
from hf_detr.training.ema import WeightAverage
from hf_detr.training.recipes import apply_recipe, class_head_rate_of

SIDE = 320  # px of a scene, which the model sees in one of SIZES_HW
SIZES_HW = ((240, 320), (320, 240), (288, 288), (224, 288), (192, 256), (256, 256))
SHAPES = ("ellipse", "rectangle", "triangle", "star", "cross", "ring", "crescent", "blob", "hexagon", "arrow")
LEFT_OUT = ("model.backbone.", "class_labels_classifier.")  # the start has its own, the user's classes are others

Rng = np.random.Generator


# -- scenes -----------------------------------------------------------------------------------------------------------


def paint_scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3) uint8, boxes (N, 4) cxcywh in [0, 1] and classes (N,). Objects of one scene are of
    similar size, and cover at most two fifths of each other."""
    rng = np.random.default_rng(seed)
    canvas = texture(rng, SIDE, SIDE)
    size_px, spread = np.exp(rng.uniform(np.log(18), np.log(170))), rng.uniform(0.05, 0.4)
    most = int(np.clip(0.9 * (SIDE / size_px) ** 2, 1, 30))
    kinds = rng.choice(len(SHAPES), size=rng.integers(1, 4))  # few kinds a scene, as in photographs of one thing
    fill = texture(rng, SIDE, SIDE) if rng.random() < 0.5 else None  # shared by the scene's objects
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, most + 1)):
        kind = int(rng.choice(kinds)) if rng.random() < 0.8 else int(rng.integers(len(SHAPES)))
        height = int(np.clip(size_px * np.exp(spread * rng.standard_normal()), 12, 0.8 * SIDE))
        coverage = draw(rng, SHAPES[kind], height)
        box = place(rng, coverage.shape, boxes)
        if box is not None:
            blend(rng, canvas, coverage, box, fill)
            boxes.append(box)
            classes.append(kind)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4) / SIDE
    boxes_cxcywh = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    return canvas.clip(0, 255).astype(np.uint8), boxes_cxcywh, np.array(classes, dtype=np.int64)


@cache
def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def texture(rng: Rng, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32 in [0, 255]: a crop of a photograph, or noise of several scales."""
    if rng.random() < 0.5:
        photograph = photographs()[rng.integers(len(photographs()))]
        side = int(rng.integers(60, min(photograph.shape[:2])))
        y, x = (int(rng.integers(0, edge - side + 1)) for edge in photograph.shape[:2])
        crop = Image.fromarray(photograph[y : y + side, x : x + side]).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        values = np.asarray(crop.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))), dtype=np.float32)
        values = values[:, :, rng.permutation(3)]
    else:
        values = np.zeros((height, width, 3), dtype=np.float32)
        for cells in (2, 5, 16, 60):
            noise = (127 + 40 * rng.standard_normal((cells, cells, 3))).clip(0, 255).astype(np.uint8)
            smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            values += rng.uniform(0, 1) * (np.asarray(smooth, dtype=np.float32) - 127)
    contrast, colour = rng.uniform(0.1, 1.0), rng.uniform(40, 215) + 30 * rng.standard_normal(3)
    return (contrast * (values - values.mean((0, 1))) + colour).astype(np.float32)


def draw(rng: Rng, shape: str, height: int) -> np.ndarray:
    """Coverage (h, w) float32 in [0, 1] of a shape turned and stretched at random, cropped to what is seen of it."""
    side, turn = 128, rng.uniform(0, 2 * np.pi)
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    if shape == "blob":
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = 0.7 + sum(rng.uniform(0, 0.2 / k) * np.cos(k * angles + rng.uniform(0, 7)) for k in range(2, 6))
    else:
        radii = np.array({
            "triangle": [0.95] * 3, "rectangle": [0.95] * 4, "hexagon": [0.95] * 6, "star": [0.95, 0.4] * 5,
            "cross": [0.95, 0.95, 0.4] * 4, "arrow": [0.95, 0.4, 0.7, 0.7, 0.4],
        }.get(shape, [0.92] * 40))  # fmt: skip
        angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
        if shape == "cross":
            angles = np.concatenate([q * np.pi / 2 + np.array([-0.3, 0.3, np.pi / 4]) for q in range(4)])
    points = side / 2 * (1 + radii[:, None] * np.stack([np.cos(angles + turn), np.sin(angles + turn)], 1))
    pen.polygon([tuple(point) for point in points], fill=255)
    if shape in ("ring", "crescent"):
        off = side / 2 * (1 + (0.35 if shape == "crescent" else 0) * np.array([np.cos(turn), np.sin(turn)]))
        hole = side / 2 * (0.7 if shape == "crescent" else rng.uniform(0.4, 0.7))
        pen.ellipse([*(off - hole), *(off + hole)], fill=0)
    width = max(6, int(height * rng.uniform(0.6, 1.0)))
    coverage = np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    rows, columns = np.flatnonzero((coverage > 0.35).any(1)), np.flatnonzero((coverage > 0.35).any(0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place(rng: Rng, size_hw: tuple[int, int], boxes: list) -> tuple[int, int, int, int] | None:
    """Corners xyxy in pixels, or None where twenty places were taken."""
    height, width = size_hw
    for _ in range(20):
        x, y = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
        for left, top, right, bottom in boxes:
            overlap = max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, bottom) - max(y, top))
            if overlap > 0.4 * min(width * height, (right - left) * (bottom - top)):
                break
        else:
            return x, y, x + width, y + height
    return None


def blend(rng: Rng, canvas: np.ndarray, coverage: np.ndarray, box: tuple, fill: np.ndarray | None) -> None:
    """Paints an object into `canvas`, in place: a texture, or a colour that differs from what lies under it, some with
    a rim of another brightness and a soft edge."""
    left, top, right, bottom = box
    under = canvas[top:bottom, left:right]
    if fill is not None:
        paint = fill[top:bottom, left:right] + 25 * rng.standard_normal(3)
    elif rng.random() < 0.3:
        paint = texture(rng, *coverage.shape)
    else:
        paint = np.broadcast_to(under.mean((0, 1)) + rng.normal(0, 40, 3), under.shape)
    gap = paint.mean() - under.mean()
    if abs(gap) < 25:  # it must be seen
        paint = paint + np.copysign(rng.uniform(25, 90), gap if 60 < under.mean() < 195 else 127 - under.mean())
    mask = Image.fromarray((255 * coverage).astype(np.uint8))
    if rng.random() < 0.5:
        inner = np.asarray(mask.filter(ImageFilter.GaussianBlur(max(1.0, min(coverage.shape) / 12))), dtype=np.float32)
        paint = paint + rng.uniform(-70, 70) * (1 - inner / 255)[..., None]
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2))), dtype=np.float32) / 255
    under += rng.uniform(0.6, 1.0) * soft[..., None] * (paint - under)


# -- training ---------------------------------------------------------------------------------------------------------


def batch_of(scenes: torch.Tensor, labels: list, chosen: list[int], rng: Rng, mean: float, std: float) -> dict:
    """The model's inputs: scenes in one of SIZES_HW, mirrored and turned at random with their boxes."""
    device = scenes.device
    pixels = scenes[torch.tensor(chosen, device=device)].float().div(255).sub(mean).div(std)
    boxes = [labels[index][0] for index in chosen]
    for axis in (0, 1):  # x, y
        if rng.random() < 0.5:
            pixels = pixels.flip(3 - axis)
            boxes = [torch.cat((b[:, :axis], 1 - b[:, axis : axis + 1], b[:, axis + 1 :]), 1) for b in boxes]
    if rng.random() < 0.5:
        pixels, boxes = pixels.transpose(2, 3), [b[:, [1, 0, 3, 2]] for b in boxes]
    size_hw = SIZES_HW[rng.integers(len(SIZES_HW))]
    pixels = F.interpolate(pixels, size=size_hw, mode="bilinear", antialias=True)
    targets = [
        {"class_labels": labels[i][1].to(device), "boxes": b.to(device)} for i, b in zip(chosen, boxes, strict=True)
    ]
    return {"pixel_values": pixels.contiguous(memory_format=torch.channels_last), "labels": targets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="of start_from_efficientnet.py")
    parser.add_argument("--scenes", type=int, default=6_500)
    parser.add_argument("--workers", type=int, default=1, help="processes that paint")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, after the painting")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/transformer"))
    args = parser.parse_args()

    begun = time.monotonic()
    with get_context("spawn").Pool(args.workers) as pool:
        painted = list(tqdm(pool.imap(paint_scene, range(args.scenes), chunksize=16), total=args.scenes, desc="scenes"))
    scenes = torch.from_numpy(np.stack([image for image, _, _ in painted])).permute(0, 3, 1, 2).to(args.device)
    labels = [(torch.from_numpy(boxes), torch.from_numpy(classes)) for _, boxes, classes in painted]
    painting = time.monotonic() - begun

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    rng = np.random.default_rng(0)
    processor = DetrImageProcessor.from_pretrained(args.start)
    model = DetrForObjectDetection.from_pretrained(
        args.start, id2label=dict(enumerate(SHAPES)), ignore_mismatched_sizes=True, freeze_backbone_until="all"
    )
    model = model.to(args.device, memory_format=torch.channels_last).train()
    apply_recipe(model, "fast")
    average = WeightAverage(model, decay=0.998)
    rate = args.learning_rate
    groups = parameter_groups(model, rate, rate, class_head_learning_rate=class_head_rate_of("fast", rate), muon=True)
    optimizer = MuonAdamW(groups)
    rates = [group["lr"] for group in groups]
    begun, step, order, seconds = time.monotonic(), 0, [], 60 * args.minutes
    losses: list[torch.Tensor] = []
    while (elapsed := time.monotonic() - begun) < seconds:
        factor = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
        for group, full in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = full * factor
        if len(order) < args.batch_size:
            order = rng.permutation(len(labels)).tolist()
        chosen, order = order[: args.batch_size], order[args.batch_size :]
        batch = batch_of(scenes, labels, chosen, rng, processor.image_mean[0], processor.image_std[0])
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step + 1)
        step += 1
        losses.append(loss.detach())
        if step % 100 == 0:
            print(f"{elapsed:6.1f} s, step {step:,}, loss {torch.stack(losses[-100:]).mean():.3f}", flush=True)

    args.output.mkdir(parents=True, exist_ok=True)
    apply_recipe(average.model, "paper")
    kept = {
        name: tensor.half().contiguous().cpu()
        for name, tensor in average.model.state_dict().items()
        if not name.startswith(LEFT_OUT)
    }
    facts = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "painting_seconds": round(painting), "training_seconds": round(seconds), "scenes": args.scenes,
        "steps": step, "batch_size": args.batch_size, "last_losses": float(torch.stack(losses[-100:]).mean()),
    }  # fmt: skip
    save_file(kept, args.output / "transformer.safetensors")
    (args.output / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
