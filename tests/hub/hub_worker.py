"""What a user's script does with the Hub, in a process of its own: `python -m tests.hub.hub_worker TASK FOLDER`.

The environment says where the Hub is. Prints nothing that matters; leaves tensors and JSON in FOLDER.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.collator import DetectionCollator
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from tests.small_models import small_model

REPO = "somebody/digit-detector"


def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def push(folder: Path) -> None:
    """A model and its processor, pushed; what the model said of a picture is kept."""
    model = small_model(num_labels=2)
    model.config.id2label = {0: "cat", 1: "dog"}
    processor = DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    model.push_to_hub(REPO)
    processor.push_to_hub(REPO)
    save_outputs(model, processor, folder / "pushed.safetensors")


def load(folder: Path) -> None:
    """What is on the Hub, loaded here and with stock transformers."""
    save_outputs(*loaded_here(), folder / "loaded.safetensors")
    save_outputs(*loaded_by_stock(), folder / "stock.safetensors")


def train(folder: Path) -> None:
    """Two steps of the plain Trainer, which pushes at the end by itself."""
    from transformers import Trainer, TrainingArguments

    rows = digit_scenes(4, image_size=64, max_objects=2, seed=0)
    model = small_model(num_labels=10)
    model.config.id2label = id2label(rows)
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        push_to_hub=True,
        hub_model_id=REPO,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=transform_dataset(rows, DetectionTransform(processor)),
        data_collator=DetectionCollator(),
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub()
    save_outputs(model, processor, folder / "pushed.safetensors")
    load(folder)


def loaded_here() -> tuple:
    return DetrForObjectDetection.from_pretrained(REPO), DetrImageProcessor.from_pretrained(REPO)


def loaded_by_stock() -> tuple:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    model, info = AutoModelForObjectDetection.from_pretrained(REPO, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.")
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model, AutoImageProcessor.from_pretrained(REPO)


@torch.no_grad()
def save_outputs(model, processor, path: Path) -> None:
    model.eval()
    outputs = model(**processor(images=photograph(), return_tensors="pt"))
    save_file({"logits": outputs.logits.contiguous(), "pred_boxes": outputs.pred_boxes.contiguous()}, path)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"push": push, "load": load, "train": train}[sys.argv[1]](Path(sys.argv[2]))
