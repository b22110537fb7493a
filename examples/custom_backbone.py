"""Train a DETR on another backbone: any timm network with feature maps, here on generated images of shapes.

python examples/custom_backbone.py --backbone convnext_atto --steps 50
python examples/custom_backbone.py --backbone resnet50 --pretrained --steps 1000
"""

import argparse

import torch
from torch.utils.data import DataLoader

from hf_detr import DetectionCollator, DetectionTransform, DetrConfig, DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.shapes import shape_scenes
from hf_detr.data.transform import transform_dataset
from hf_detr.training import parameter_groups

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backbone", default="convnext_atto", help="see timm.list_models()")
parser.add_argument("--pretrained", action="store_true", help="start from timm's published weights, which are fetched")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--output", default="runs/custom_backbone")
options = parser.parse_args()

torch.manual_seed(0)
scenes = shape_scenes(64)
# frozen norms and a frozen stem are for pretrained weights; random ones must learn all of it
fresh = {} if options.pretrained else {"freeze_backbone_norms": False, "freeze_backbone_until": None}
config = DetrConfig(
    backbone=options.backbone, use_pretrained_backbone=options.pretrained, id2label=id2label(scenes), num_queries=12,
    d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
    encoder_auxiliary_loss=True, **fresh,
)  # fmt: skip
model = DetrForObjectDetection(config)
channels = model.model.backbone.intermediate_channel_sizes[-1]
print(f"{options.backbone}: {channels} channels in its last map, {model.num_parameters():,} parameters in the model")

processor = DetrImageProcessor(size={"height": 96, "width": 96})
data = transform_dataset(scenes, DetectionTransform(processor, augment="paper"))
loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=DetectionCollator(), drop_last=True)
optimizer = torch.optim.AdamW(parameter_groups(model, 5e-4, 5e-5 if options.pretrained else 5e-4))
model.train()
batches = (batch for _ in range(options.steps) for batch in loader)
for step, batch in zip(range(options.steps), batches, strict=False):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 10 == 0 or step == options.steps - 1:
        print(f"step {step}: loss {loss.item():.3f}")
model.save_pretrained(options.output)
processor.save_pretrained(options.output)
