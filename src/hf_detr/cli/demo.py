"""`hf-detr demo`: trains a small DETR from nothing in a few minutes, and shows that it found what it was shown."""

import argparse
import json
import time
from pathlib import Path

PASSES = 0.8  # AP50 on the scenes trained on; below it something is broken


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hf-detr demo`."""
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="where everything goes")
    parser.add_argument("--scenes", type=int, default=64, metavar="N", help="generated pictures to learn by heart")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="optimizer steps, of 32 pictures each")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order")


def run(args: argparse.Namespace) -> int:
    """Trains, evaluates and writes the run folder; 0, or 1 if AP50 stays at or below 0.8.

    The folder gets the model and its processor (for `from_pretrained`), metrics.json and predictions.png. Raises
    ValueError for impossible numbers.
    """
    import torch  # here, so that `hf-detr --help` does not wait for it
    from tqdm.auto import tqdm
    from transformers.utils.logging import disable_progress_bar

    from .. import DetrConfig, DetrForObjectDetection, DetrImageProcessor
    from ..data.collator import DetectionCollator
    from ..data.digits import digit_scenes
    from ..data.schema import id2label
    from ..data.transform import DetectionTransform, transform_dataset
    from ..training import evaluate_model, parameter_groups
    from ..visualization import save_detections_grid

    if args.scenes < 1 or args.steps < 1:
        raise ValueError(f"--scenes {args.scenes} and --steps {args.steps} must be at least 1.")
    args.output.mkdir(parents=True, exist_ok=True)  # where it cannot be, that is said now
    disable_progress_bar()  # of saving: one bar is enough
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    scenes = digit_scenes(args.scenes, image_size=96, seed=args.seed)
    names = id2label(scenes)
    config = DetrConfig(
        backbone="test_resnet",  # timm's smallest, 0.4 million parameters
        backbone_kwargs={"output_stride": 16},
        freeze_backbone_norms=False,  # it starts from random weights: all of it must learn
        freeze_backbone_until=None,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        num_queries=12,  # a scene has at most 5 objects
        dropout=0.0,  # learning by heart is wanted here
        attention_dropout=0.0,
        activation_dropout=0.0,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    model = DetrForObjectDetection(config).to(device)
    processor = DetrImageProcessor(size={"height": 96, "width": 96})

    # few pictures of one size, without augmentation: all of them stay on the device
    prepared = transform_dataset(scenes, DetectionTransform(processor))
    everything = DetectionCollator()([prepared[index] for index in range(len(prepared))])
    pixel_values = everything["pixel_values"].to(device)
    labels = [{name: value.to(device) for name, value in label.items()} for label in everything["labels"]]

    rate = 1e-3
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=rate, backbone_learning_rate=rate))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=args.steps + 1, pct_start=0.1)
    print(f"Training a DETR of {model.num_parameters():,} parameters on {len(scenes)} scenes ({device}).", flush=True)
    order: list[int] = []
    model.train()
    for _ in (bar := tqdm(range(args.steps), unit="step", mininterval=0.5)):
        if not order:
            order = torch.randperm(len(scenes)).tolist()
        chosen, order = order[:32], order[32:]
        loss = model(pixel_values=pixel_values[chosen], labels=[labels[index] for index in chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

    evaluator = evaluate_model(model, processor, scenes, batch_size=32)
    metrics = evaluator.compute()
    print(evaluator.table())

    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    seconds = time.perf_counter() - started
    run_facts = {"steps": args.steps, "scenes": args.scenes, "seed": args.seed, "seconds": round(seconds, 1)}
    (args.output / "metrics.json").write_text(json.dumps({**metrics, **run_facts}, indent=2) + "\n", encoding="utf-8")
    shown = list(range(min(9, len(scenes))))
    with torch.no_grad():
        outputs = model.eval()(pixel_values=pixel_values[shown])
    detections = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(96, 96)] * len(shown))
    save_detections_grid(
        [scenes[index]["image"] for index in shown],
        detections,
        args.output / "predictions.png",
        id2label=names,
        targets=[{key: scenes[index][key] for key in ("image_id", "objects")} for index in shown],
    )
    print(f"Done in {seconds:.0f} s. Look at {args.output / 'predictions.png'}: solid boxes found, dashed boxes true.")
    if metrics["map_50"] > PASSES:
        return 0
    print(f"AP50 is {metrics['map_50']:.3f}, not above {PASSES}: train longer (--steps) or on fewer scenes (--scenes).")
    return 1
