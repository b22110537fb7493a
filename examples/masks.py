"""Give a trained detector masks: it stays as it is, and a mask head learns on top; here on generated images of digits.

python examples/masks.py --steps 400
python examples/masks.py scenes --detector runs/boxes    # data with masks, and a detector of its classes
"""

import argparse

import torch
from torch.utils.data import DataLoader

from hf_detr import DetectionCollator, DetectionTransform, DetrForSegmentation, DetrImageProcessor, digit_scenes
from hf_detr.checkpoints.tiny import tiny_checkpoint
from hf_detr.data.loading import load_detection_dataset
from hf_detr.data.schema import id2label
from hf_detr.data.transform import transform_dataset
from hf_detr.evaluation import CocoEvaluator, evaluate_model
from hf_detr.training import parameter_groups
from hf_detr.visualization import save_masks_grid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", help="a folder or Hub data set of any usual format; generated unless given")
parser.add_argument("--detector", default=tiny_checkpoint(), help="a folder or a name on the Hub")
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--output", default="runs/masks")
options = parser.parse_args()

torch.manual_seed(0)
made = {split: digit_scenes(64, split=split, task="instance") for split in ("train", "test")}
data = load_detection_dataset(options.data, hold_out=0.1) if options.data else made
held_out = data["validation" if "validation" in data else "test"]
names = id2label(data["train"])
processor = DetrImageProcessor.from_pretrained(options.detector)
model = DetrForSegmentation.from_detector(options.detector, id2label=names)  # frozen but for the mask head
rows = transform_dataset(data["train"], DetectionTransform(processor, masks=True))
loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=DetectionCollator())
optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=3e-3))  # of what trains
batches = (batch for _ in range(options.steps) for batch in loader)
model.train()
for step, batch in zip(range(options.steps), batches, strict=False):
    outputs = model(**batch)
    optimizer.zero_grad()
    outputs.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 20 == 0 or step == options.steps - 1:
        print(f"step {step}: loss {outputs.loss_dict['loss_mask'] + outputs.loss_dict['loss_dice']:.3f}")

print(evaluate_model(model, processor, held_out, evaluator=CocoEvaluator(names, iou_type="segm")).table())
few = held_out.select(range(len(held_out))[:4])
inputs = processor(images=few["image"][:], return_tensors="pt")
with torch.inference_mode():
    outputs = model.eval()(**inputs, mask_threshold=0.5)  # the masks of these queries alone
sizes_hw = [(row["height"], row["width"]) for row in few]
found = processor.post_process_masks(outputs, threshold=0.5, target_sizes=sizes_hw)
save_masks_grid(few["image"][:], found, list(few), f"{options.output}/found.png", names)
model.save_pretrained(options.output)
processor.save_pretrained(options.output)
