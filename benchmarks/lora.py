"""What LoRA costs in AP and saves in trained weights: the small detector of the package, fine-tuned on drawn shapes.

    OMP_NUM_THREADS=1 python benchmarks/lora.py

Each contestant starts from the same digits detector with a fresh class head, takes the same steps of 16 of 800 scenes
and is measured on 200 others. Seconds are those the process computed, data and optimizer included.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import environment
from hf_detr import (
    DetectionCollator,
    DetectionTransform,
    DetrForObjectDetection,
    DetrImageProcessor,
    evaluate_model,
    shape_scenes,
    tiny_checkpoint,
    transform_dataset,
)
from hf_detr.data.schema import id2label

HEADS = ["class_labels_classifier", "bbox_predictor"]
LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]  # of encoder and decoder
# name -> (rank of the adapters, None for none; whether all else is frozen; the highest learning rate)
CONTESTANTS = {
    "heads alone": (None, True, 2e-3),
    "LoRA, rank 8, and heads": (8, True, 2e-3),  # examples/lora.py
    "LoRA, rank 32, and heads": (32, True, 2e-3),
    "all weights": (None, False, 1e-3),  # the rate of benchmarks/convergence
}


def start(name: str, names: dict[int, str]) -> nn.Module:
    """The model of a contestant, with what it trains requiring gradients."""
    rank, frozen, _ = CONTESTANTS[name]
    detector = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=names, auxiliary_loss=True)
    if rank is not None:
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, modules_to_save=HEADS)
        return get_peft_model(detector, lora)
    if frozen:
        for parameter_name, parameter in detector.named_parameters():
            parameter.requires_grad_(parameter_name.split(".")[0] in HEADS)
    return detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=800, help="to train on")
    parser.add_argument("--output", type=Path, default=environment.REPOSITORY / "benchmarks/results/lora_cpu.json")
    args = parser.parse_args()
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    scenes, test = shape_scenes(args.images, seed=1), shape_scenes(200, seed=2, split="test")
    train, collate = transform_dataset(scenes, DetectionTransform(processor)), DetectionCollator()
    batches = torch.Generator().manual_seed(0)
    order = [torch.randint(len(train), (16,), generator=batches).tolist() for _ in range(args.steps)]
    result = {"program": "lora", "environment": environment.describe(torch.device("cpu"), quick=True)}
    result |= {"stamp": environment.stamp(), "steps": args.steps, "images": args.images, "contestants": {}}
    print("| trained | weights | AP | AP50 | CPU seconds |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (_, _, rate) in CONTESTANTS.items():
        torch.manual_seed(0)
        model = start(name, id2label(scenes)).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=args.steps)
        begun = time.process_time()
        for chosen in order:
            model(**collate([train[index] for index in chosen])).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        seconds = time.process_time() - begun
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        found = evaluate_model(merged.eval(), processor, test, batch_size=16).compute()
        row = {"trained": sum(one.numel() for one in trained), "weights": merged.num_parameters(), "rate": rate}
        row |= {"ap": found["map"], "ap_50": found["map_50"], "cpu_seconds": round(seconds, 1)}
        result["contestants"][name] = row
        print(f"| {name} | {row['trained']:,} | {row['ap']:.3f} | {row['ap_50']:.3f} | {seconds:.0f} |", flush=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
