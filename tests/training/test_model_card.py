"""What DetrTrainer says of a run."""

import pytest
from PIL import Image

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.training import DetrTrainer

from .conftest import arguments, model, scenes, transformed


def test_the_card_has_recipe_classes_and_the_ap_of_the_last_evaluation(tmp_path):
    rows = transformed(scenes(4))
    trainer = DetrTrainer(model(), arguments(tmp_path, max_steps=1), train_dataset=rows, eval_dataset=rows)
    trainer.create_model_card()
    assert "AP50" not in (tmp_path / "README.md").read_text()
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(model_name="digits", license="mit", dataset="Drawn digits", dataset_tags="me/digits")
    card = (tmp_path / "README.md").read_text()
    assert "name: Drawn digits\n      type: me/digits" in card
    assert "[me/digits](https://huggingface.co/datasets/me/digits)" in card
    assert "# digits" in card
    assert "license: mit" in card
    assert "| epochs | 0.5 (1 step) |" in card
    assert "| train | 4 |" in card
    assert "AP50" in card
    assert trainer.model.config.id2label[0] in card
    for name in ("precision_recall.png", "confusion.png"):
        assert f"]({name})" in card
        with Image.open(tmp_path / name) as figure:
            assert min(figure.size) > 400


def test_training_removes_thresholds_that_were_chosen_for_other_weights(tmp_path):
    rows = transformed(scenes(2))
    processor = DetrImageProcessor(class_thresholds={0: 0.3})
    settings = {"train_dataset": rows, "eval_dataset": rows, "processing_class": processor}
    trainer = DetrTrainer(model(), arguments(tmp_path, max_steps=1), **settings)
    with pytest.warns(UserWarning, match="class_thresholds of the processor were chosen for other weights"):
        trainer.train()
    assert processor.class_thresholds is None


def test_the_card_names_no_folder_and_the_split_that_chose_the_best_epoch(tmp_path):
    start = tmp_path / "start"
    model().save_pretrained(start)
    (start / "README.md").write_text("---\nbase_model: facebook/detr-resnet-50\n---\n")
    rows = transformed(scenes(4))
    settings = arguments(tmp_path / "run")
    detector = DetrForObjectDetection.from_pretrained(start)
    trainer = DetrTrainer(detector, settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "base_model: facebook/detr-resnet-50" in card
    assert "| started from | a local checkpoint, fine-tuned from facebook/detr-resnet-50 |" in card
    assert "The best epoch was chosen on the same split" in card
    assert "It runs in Transformers without further code" in card
