"""Train DETR with a plain transformers.Trainer: a data set of any usual format, our transform, collator and metric.

python examples/train_trainer.py cppe-5 --checkpoint facebook/detr-resnet-50 --epochs 20 --output runs/cppe-5
python examples/train_trainer.py digits --backbone test_resnet --shortest-edge 96 --epochs 1 --output runs/digits
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments

from hf_detr import DetectionCollator, DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import CocoMetric, parameter_groups

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="a folder or Hub data set of any usual format, or 'digits' for generated images")
parser.add_argument("--checkpoint", help="a DETR to start from; else a fresh one on --backbone, a timm network")
parser.add_argument("--backbone", default="resnet50")
parser.add_argument("--masks", action="store_true", help="learn the objects' masks as well, and judge by their AP")
parser.add_argument("--shortest-edge", type=int, default=800, help="pixels")
parser.add_argument("--epochs", type=float, default=50)
parser.add_argument("--images", type=int, default=64, help="generated ones, of each split")
parser.add_argument("--output", required=True)
options = parser.parse_args()
task, model_class = ("instance", DetrForSegmentation) if options.masks else ("detection", DetrForObjectDetection)
if options.data == "digits":
    data = {split: digit_scenes(options.images, split=split, task=task) for split in ("train", "test")}
else:
    data = load_detection_dataset(options.data, hold_out=0.1)  # a tenth of the images, where there is but one split
held_out = data["validation" if "validation" in data else "test"]
classes = {"id2label": id2label(data), "label2id": {name: index for index, name in id2label(data).items()}}
if options.checkpoint:  # where it has no masks, the mask head starts afresh
    model = model_class.from_pretrained(options.checkpoint, auxiliary_loss=True, **classes)
else:
    thawed = {"freeze_backbone_norms": False, "freeze_backbone_until": None}  # random weights have all to learn
    model = model_class(DetrConfig(backbone=options.backbone, **thawed, **classes))
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
