"""Find the objects in images and draw them: the small checkpoint of the package on generated images, or yours on yours.

python examples/inference.py
python examples/inference.py --checkpoint facebook/detr-resnet-50 --images street.jpg garden.jpg --threshold 0.7
"""

import argparse

import torch
from PIL import Image, ImageOps

import hf_detr
from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes
from hf_detr.visualization import save_detections_grid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoint", default=hf_detr.tiny_checkpoint(), help="a folder or a name on the Hub")
parser.add_argument("--images", nargs="+", metavar="FILE", help="generated ones unless given")
parser.add_argument("--threshold", type=float, default=0.5)
parser.add_argument("--output", default="detections.png")
options = parser.parse_args()

if options.images:
    images = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in options.images]
else:
    images = digit_scenes(4, split="test")["image"][:]
device = "cuda" if torch.cuda.is_available() else "cpu"
processor = DetrImageProcessor.from_pretrained(options.checkpoint)
model = DetrForObjectDetection.from_pretrained(options.checkpoint).to(device)  # in eval mode
model.fold_norms()  # faster, the same outputs

inputs = processor(images=images, return_tensors="pt").to(device)  # padded to one size, with a mask where it needs one
with torch.inference_mode():
    outputs = model(**inputs)
sizes_hw = [(image.height, image.width) for image in images]
found = processor.post_process_object_detection(outputs, threshold=options.threshold, target_sizes=sizes_hw)

for number, detections in enumerate(found):
    print(f"image {number}: {len(detections['scores'])} objects")
    for score, label, box in zip(detections["scores"], detections["labels"], detections["boxes"], strict=True):
        left, top, right, bottom = box.tolist()
        name = model.config.id2label[label.item()]
        print(f"  {name} {score:.2f} at ({left:.1f}, {top:.1f}) to ({right:.1f}, {bottom:.1f}) px")
save_detections_grid(images, found, options.output, model.config.id2label)
print(f"drawn in {options.output}")
