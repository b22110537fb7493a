"""Train the small DETR that ships in the package, from random weights, on generated scenes of handwritten digits.

    python examples/train_tiny_checkpoint.py --minutes 60 --output runs/tiny

Nothing is fetched. The learning rate follows the clock (a short warm-up, then a cosine to zero), so that any time
gives a finished model; the exported weights are the moving average of the last few hundred steps.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor
from hf_detr.checkpoints.card_facts import card_facts
from hf_detr.checkpoints.model_card import model_card
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.training import MuonAdamW, evaluate_model, parameter_groups
from hf_detr.training.ema import WeightAverage
from hf_detr.training.recipes import apply_recipe, class_head_rate_of, uses_muon
from hf_detr.wording import counted

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
    )
    return DetrForObjectDetection(config)


def prepare(processor: DetrImageProcessor, scenes) -> tuple[torch.Tensor, list[dict]]:
    """All images, normalised, in one tensor (N, 3, 96, 96) float16, and their labels: 6,000 are 330 MB."""
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
    parser.add_argument("--bf16", action="store_true", help="mixed precision: quicker where the device has it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    args = parser.parse_args()

    torch.manual_seed(0)
    processor = DetrImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    train, test = digit_scenes(args.scenes, IMAGE_SIZE), digit_scenes(500, IMAGE_SIZE, seed=1, split="test")
    pixels, labels = prepare(processor, train)
    model = make_model(id2label(train)).to(args.device, memory_format=torch.channels_last).train()
    apply_recipe(model, "fast")
    average = WeightAverage(model, decay=0.998)
    rate = args.learning_rate
    class_head_rate, muon = class_head_rate_of("fast", rate), uses_muon("fast", None)
    groups = parameter_groups(model, rate, rate, class_head_learning_rate=class_head_rate, muon=muon)
    optimizer = MuonAdamW(groups)
    rates = [group["lr"] for group in groups]

    start, step, order, seen = time.monotonic(), 0, torch.empty(0, dtype=torch.int64), 0.0
    with tqdm(total=round(args.minutes * 60), unit="s") as bar:
        while (elapsed := time.monotonic() - start) < args.minutes * 60:
            fraction = elapsed / (args.minutes * 60)
            factor = min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * fraction))
            for group, full in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = full * factor
            if len(order) < args.batch_size:
                order = torch.randperm(len(pixels))
            index, order = order[: args.batch_size], order[args.batch_size :]
            batch = [{key: value.to(args.device) for key, value in labels[i].items()} for i in index.tolist()]
            images = pixels[index].to(args.device).float().contiguous(memory_format=torch.channels_last)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                loss = model(images, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update(model, step + 1)
            step += 1
            if step % 100 == 0:
                seen = loss.item()
            bar.n = round(elapsed)
            bar.set_postfix(step=step, loss=f"{seen:.2f}", refresh=False)
            bar.refresh()

    facts = {
        "minutes": f"{args.minutes:g} minutes on {args.device}, {counted(torch.get_num_threads(), 'thread')}",
        "steps": f"{step:,}, {step / (time.monotonic() - start):.1f} a second",
        "images a step": args.batch_size,
        "optimizer": f"AdamW and Muon, {args.learning_rate:g}, cosine to 0, gradients clipped at 1",
        "precision": "bf16" if args.bf16 else "fp32",
        "recipe": "fast, averaged with decay 0.998",
    }
    write(average.model, processor, args.output, facts, test, num_train=len(train))


def write(model, processor, folder: Path, recipe: dict, test: Dataset, num_train: int) -> None:
    """Evaluates the model, and writes it with its processor and a card that says how it was trained and how it does."""
    evaluator = evaluate_model(model, processor, test, batch_size=64)
    print(evaluator.table())
    apply_recipe(model, "paper")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = card_facts(
        model,
        "tiny",
        dataset={
            "name": "generated scenes of handwritten digits",
            "source": "made by `hf_detr.digit_scenes`",
            "splits": {"train": {"images": num_train}, "test": {"images": len(test)}},
        },
        recipe={"script": "examples/train_tiny_checkpoint.py", **recipe},
        evaluation={"split": "test", "metrics": evaluator.compute()},
    )
    facts["model"]["backbone"] += ", from random weights, live norms"
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
