"""Train DETR with a plain transformers.Trainer: a data set of any usual format, our transform, collator and metric.

python examples/train_trainer.py cppe-5 --checkpoint facebook/detr-resnet-50 --epochs 20 --output runs/cppe-5
python examples/train_trainer.py digits --backbone test_resnet --shortest-edge 96 --epochs 1 --output runs/digits
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments

from hf_detr import (
    CocoMetric,
    DetectionCollator,
    DetectionTransform,
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrImageProcessor,
    digit_scenes,
    load_detection_dataset,
    parameter_groups,
    transform_dataset,
)
from hf_detr.data.schema import id2label

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="a folder or Hub data set of any usual format, or 'digits' for generated ones")
parser.add_argument("--checkpoint", help="a DETR to start from; else a fresh one on --backbone, a timm network")
parser.add_argument("--backbone", default="resnet50")
parser.add_argument("--masks", action="store_true", help="learn the objects' masks as well, and judge by their AP")
parser.add_argument("--shortest-edge", type=int, default=800, help="pixels")
parser.add_argument("--epochs", type=float, default=50)
parser.add_argument("--images", type=int, default=64, help="generated ones to train on, with 'digits'")
parser.add_argument("--output", required=True)
options = parser.parse_args()
if options.data == "digits":
    task = {"task": "instance" if options.masks else "detection"}
    sizes = {"train": options.images, "test": options.images // 4}
    data = {split: digit_scenes(size, split=split, **task) for split, size in sizes.items()}
else:
    data = load_detection_dataset(options.data, hold_out=0.1)  # a tenth of the images, where there is but one split
held_out = data["validation" if "validation" in data else "test"]
classes = {"id2label": id2label(data), "label2id": {name: index for index, name in id2label(data).items()}}
model_class = DetrForSegmentation if options.masks else DetrForObjectDetection
if options.checkpoint:  # of a detector: its mask head starts afresh
    model = model_class.from_pretrained(options.checkpoint, auxiliary_loss=True, **classes)
else:
    fresh = {"freeze_backbone_norms": False, "freeze_backbone_until": None}  # its weights are random
    model = model_class(DetrConfig(backbone=options.backbone, **fresh, **classes))
processor = DetrImageProcessor(size=options.shortest_edge, max_size=options.shortest_edge * 1333 // 800)
metric = CocoMetric(processor, model.config.id2label, iou_type="segm" if options.masks else "bbox")

args = TrainingArguments(options.output, num_train_epochs=options.epochs, max_grad_norm=0.1, eval_strategy="epoch",
                         save_strategy="epoch", metric_for_best_model="map", load_best_model_at_end=True,
                         logging_steps=10, remove_unused_columns=False, batch_eval_metrics=True)  # fmt: skip
trainer = Trainer(
    model,
    args,
    DetectionCollator(),
    train_dataset=transform_dataset(data["train"], DetectionTransform(processor, "paper", options.masks)),
    eval_dataset=transform_dataset(held_out, DetectionTransform(processor, masks=options.masks)),
    processing_class=processor,
    compute_metrics=metric,
    preprocess_logits_for_metrics=metric.preprocess,
    optimizers=(torch.optim.AdamW(parameter_groups(model)), None),
)
trainer.train()
trainer.save_model()
print(metric.evaluator.table())
