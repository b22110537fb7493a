"""The image of the README and the first page: `python docs/site_tools/readme_image.py`. It follows from the package."""

from pathlib import Path

import torch
from datasets import disable_progress_bars

import hf_detr
from hf_detr import DetrForObjectDetection, DetrImageProcessor, digit_scenes
from hf_detr.visualization import save_detections_grid

OUTPUT = Path(__file__).resolve().parents[1] / "images" / "detections.jpg"


def main(output: Path = OUTPUT) -> None:
    disable_progress_bars()
    torch.set_num_threads(1)
    processor = DetrImageProcessor.from_pretrained(hf_detr.tiny_checkpoint())
    model = DetrForObjectDetection.from_pretrained(hf_detr.tiny_checkpoint())
    images = digit_scenes(6, max_objects=5, seed=0, split="test")["image"][:]
    inputs = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = [image.size[::-1] for image in images]
    found = processor.post_process_object_detection(outputs, threshold=0.7, target_sizes=sizes)
    save_detections_grid(images, found, output, model.config.id2label, columns=3, cell_px=360)


if __name__ == "__main__":
    main()
