"""A tiny data set, a tiny model and quick arguments, for every test of training."""

import pytest
import torch

from hf_detr import DetrImageProcessor
from hf_detr.data.schema import id2label
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import DetrTrainer, DetrTrainingArguments

from ..small_models import small_model

PROCESSOR = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def scenes(num_images: int = 8, split: str = "train"):
    """Raw rows of 64 x 64 pictures with up to three of the digits 0 to 4."""
    return digit_scenes(num_images, image_size=64, max_objects=3, digits=range(5), split=split)


def transformed(rows, augment=None):
    return transform_dataset(rows, DetectionTransform(PROCESSOR, augment))


def model(**changes):
    without_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    names = changes.pop("id2label", None) or id2label(scenes(1))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: one for one, name in names.items()}}
    layers = {"encoder_layers": 1, "decoder_layers": 2}
    return small_model(**{**without_dropout, **labels, **layers, **changes})


def arguments(folder, **changes):
    quick = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-3,
    }
    return DetrTrainingArguments(str(folder), **{**quick, **changes})


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """More threads than that only wait for each other in nets so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_trainer(tmp_path):
    """`trainer_maker` for the folder of one test."""
    return trainer_maker(tmp_path)


def trainer_maker(parent):
    """A function of model, rows and arguments that gives a DetrTrainer writing to a folder in `parent`."""

    def make(detector=None, rows=None, test=None, augment=None, folder="run", options=None, **changes) -> DetrTrainer:
        if test is None:
            changes = {"eval_strategy": "no", **changes}
        return DetrTrainer(
            detector or model(),
            arguments(parent / folder, **changes),
            train_dataset=transformed(scenes() if rows is None else rows, augment),
            eval_dataset=None if test is None else transformed(test),
            **(options or {}),
        )

    return make


def training_log(trainer) -> list[dict]:
    """Entries of the steps, without those of evaluations and the last."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
