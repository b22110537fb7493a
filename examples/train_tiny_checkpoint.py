"""Train the small DETR that ships in the package, from random weights, on generated scenes of handwritten digits.

    python examples/train_tiny_checkpoint.py --minutes 60 --output runs/tiny

Nothing is fetched. The learning rate follows the clock (a short warm-up, then a cosine to zero), so that any time
gives a finished model; the exported weights are the moving average of the last few hundred steps.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.digits import digit_scenes
from hf_detr.data.schema import id2label
from hf_detr.training import evaluate_model

IMAGE_SIZE = 96


def make_model(names: dict[int, str]) -> DetrForObjectDetection:
    config = DetrConfig(
        backbone="test_resnet",
        dilation=True,  # a map of 6 x 6 cells
        freeze_backbone_norms=False,  # nothing published to keep
        freeze_backbone_until=None,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        num_queries=12,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        id2label=names,
        denoising_queries=3,
    )
    return DetrForObjectDetection(config)


def prepare(processor: DetrImageProcessor, scenes) -> tuple[torch.Tensor, list[dict]]:
    """All pictures, normalised, in one tensor (N, 3, 96, 96) float16, and their labels: 6,000 are 330 MB."""
    pixels, labels = [], []
    for start in range(0, len(scenes), 500):
        rows = [scenes[index] for index in range(start, min(start + 500, len(scenes)))]
        batch = processor(images=[row["image"] for row in rows], annotations=rows, return_tensors="pt")
        pixels.append(batch["pixel_values"].half())
        labels += [{key: label[key] for key in ("class_labels", "boxes")} for label in batch["labels"]]
    return torch.cat(pixels), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train")
    parser.add_argument("--scenes", type=int, default=6_000, help="training scenes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    args = parser.parse_args()

    torch.manual_seed(0)
    processor = DetrImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    train, test = digit_scenes(args.scenes, IMAGE_SIZE), digit_scenes(500, IMAGE_SIZE, seed=1, split="test")
    pixels, labels = prepare(processor, train)
    model = make_model(id2label(train)).to(args.device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-4)

    start, step, order, seen = time.monotonic(), 0, torch.empty(0, dtype=torch.int64), 0.0
    with tqdm(total=round(args.minutes * 60), unit="s") as bar:
        while (elapsed := time.monotonic() - start) < args.minutes * 60:
            fraction = elapsed / (args.minutes * 60)
            rate = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * fraction))
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate
            if len(order) < args.batch_size:
                order = torch.randperm(len(pixels))
            index, order = order[: args.batch_size], order[args.batch_size :]
            batch = [{key: value.to(args.device) for key, value in labels[i].items()} for i in index.tolist()]
            images = pixels[index].to(args.device).float().contiguous(memory_format=torch.channels_last)
            loss = model(images, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                keep = min(0.998, step / (step + 10))
                for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    mean.lerp_(now, 1 - keep)
            step += 1
            if step % 100 == 0:
                seen = loss.item()
            bar.n = round(elapsed)
            bar.set_postfix(step=step, loss=f"{seen:.2f}", refresh=False)
            bar.refresh()

    evaluator = evaluate_model(average, processor, test, batch_size=64)
    numbers = evaluator.compute()
    print(evaluator.table())
    average.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    facts = {
        "minutes": args.minutes,
        "steps": step,
        "scenes": args.scenes,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "threads": torch.get_num_threads(),
        "map": numbers["map"],
        "map_50": numbers["map_50"],
        "map_75": numbers["map_75"],
        "test_scenes": len(test),
    }
    (args.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
