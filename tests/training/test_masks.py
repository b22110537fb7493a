"""DetrTrainer with masks: what it is judged by, what trains, and what it refuses."""

import pytest
import torch

from hf_detr import DetrForSegmentation, DetrImageProcessor, tiny_checkpoint
from hf_detr.data.schema import id2label, stuff_ids
from hf_detr.data.synthetic.digits import digit_scenes
from hf_detr.data.transform import DetectionTransform, transform_dataset
from hf_detr.training import DetrTrainer

from ..small_models import small_segmenter
from .conftest import PROCESSOR, arguments


def rows(task: str, num_images: int = 6, split: str = "train"):
    return digit_scenes(num_images, image_size=64, max_objects=3, split=split, task=task)


def transformed(data, masks: bool = True):
    return transform_dataset(data, DetectionTransform(PROCESSOR, masks=masks))


def segmenter(data, **changes):
    names = id2label(data)
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: one for one, name in names.items()}}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
    return small_segmenter(**labels, **layers, **changes)


@pytest.mark.parametrize(("task", "number"), [("instance", "map"), ("panoptic", "pq")])
def test_the_best_checkpoint_is_that_of_the_best_mask_ap_or_panoptic_quality(task, number, tmp_path):
    train = rows(task)
    settings = arguments(tmp_path, num_train_epochs=2, recipe="fast")
    model = segmenter(train, label_ids_to_fuse=stuff_ids(train) or None)
    trainer = DetrTrainer(model, settings, train_dataset=transformed(train), eval_dataset=transformed(rows(task, 3)))
    trainer.train()
    values = [entry[f"eval_{number}"] for entry in trainer.state.log_history if f"eval_{number}" in entry]
    assert len(values) == 2
    assert trainer.state.best_metric == max(values)
    metrics = trainer.evaluate()
    assert metrics[f"eval_{number}"] == pytest.approx(max(values), abs=1e-6)
    assert {"eval_loss_mask", "eval_loss_dice"} <= set(metrics)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"model for {task} segmentation" in card
    assert "| PQ things |" in card if task == "panoptic" else "| mask AP50 |" in card


def test_with_a_frozen_detector_masks_alone_are_learnt(tmp_path):
    train = rows("instance")
    model = DetrForSegmentation.from_detector(tiny_checkpoint())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = arguments(tmp_path, recipe="fast", eval_strategy="no", save_strategy="no")
    trainer = DetrTrainer(model, settings, train_dataset=transformed(train))
    trainer.train()
    assert trainer.model.training_only is None  # the detector would have no use for what "fast" adds
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"bbox_attention", "mask_head"}


def test_the_loss_of_an_evaluation_does_not_depend_on_the_batches(tmp_path):
    data = rows("instance", 5)
    losses = []
    for size in (1, 3):
        settings = arguments(tmp_path, per_device_eval_batch_size=size)
        trainer = DetrTrainer(segmenter(data), settings, eval_dataset=transformed(data))
        losses.append(trainer.evaluate())
    for name in ("eval_loss", "eval_loss_mask", "eval_loss_dice"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-4)


def test_predictions_have_masks_of_the_size_of_the_image(tmp_path):
    data = rows("instance", 2)
    trainer = DetrTrainer(segmenter(data), arguments(tmp_path, eval_strategy="no"), processing_class=PROCESSOR)
    for one in trainer.predict(transformed(data)).predictions:
        assert len(one["masks"]) == len(one["scores"]) == 9
        assert one["masks"][0]["size"] == [64, 64]


def test_rows_without_masks_are_refused_for_a_model_with_masks(tmp_path):
    data = rows("instance", 2)
    with pytest.raises(ValueError, match="masks=True"):
        DetrTrainer(segmenter(data), arguments(tmp_path), train_dataset=transformed(data, masks=False))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_masks_are_learnt_within_minutes_from_the_small_checkpoint_with_its_detector_frozen(tmp_path):
    """300 steps of 8 images: half a minute of one core."""
    train = digit_scenes(400, 96, task="instance")
    test = digit_scenes(60, 96, split="test", task="instance")
    model = DetrForSegmentation.from_detector(tiny_checkpoint())
    settings = arguments(
        tmp_path, max_steps=300, per_device_train_batch_size=8, learning_rate=3e-3, max_grad_norm=1.0, recipe="fast",
        eval_strategy="no", save_strategy="no", logging_steps=50,
    )  # fmt: skip
    transform = DetectionTransform(DetrImageProcessor.from_pretrained(tiny_checkpoint()), masks=True)
    sets = {"train_dataset": transform_dataset(train, transform), "eval_dataset": transform_dataset(test, transform)}
    trainer = DetrTrainer(model, settings, **sets)
    assert trainer.evaluate()["eval_map_50"] < 0.1
    trainer.train()
    assert trainer.evaluate()["eval_map_50"] >= 0.5
