"""Fine-tune with LoRA (pip install peft): a few low-rank matrices and the class head train, all other weights stay.

python examples/lora.py --steps 60
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

import hf_detr
from hf_detr import DetectionCollator, DetectionTransform, DetrForObjectDetection, DetrImageProcessor, shape_scenes
from hf_detr.data.schema import id2label
from hf_detr.data.transform import transform_dataset
from hf_detr.evaluation import evaluate_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default=hf_detr.tiny_checkpoint(), help="a folder or a name on the Hub")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--output", default="runs/lora")
options = parser.parse_args()

torch.manual_seed(0)
scenes, unseen = shape_scenes(128), shape_scenes(32, split="test")
processor = DetrImageProcessor.from_pretrained(options.checkpoint)
detector = DetrForObjectDetection.from_pretrained(options.checkpoint, id2label=id2label(scenes), auxiliary_loss=True)
lora = LoraConfig(
    r=8,
    lora_alpha=16,
    target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],  # of encoder and decoder
    modules_to_save=["class_labels_classifier", "bbox_predictor"],  # trained whole: the classes are new
)
model = get_peft_model(detector, lora)
model.print_trainable_parameters()

data = transform_dataset(scenes, DetectionTransform(processor))
loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=DetectionCollator())
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
model.train()
batches = (batch for _ in range(options.steps) for batch in loader)
for step, batch in zip(range(options.steps), batches, strict=False):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 20 == 0 or step == options.steps - 1:
        print(f"step {step}: loss {loss.item():.3f}")

merged = model.merge_and_unload().eval()  # a plain DETR again, that anything loads
print(f"AP50 on unseen images: {evaluate_model(merged, processor, unseen, batch_size=16).compute()['map_50']:.3f}")
merged.save_pretrained(options.output)
processor.save_pretrained(options.output)
