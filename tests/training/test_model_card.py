"""What DetrTrainer says of a run."""

from hf_detr.training import DetrTrainer

from .conftest import arguments, model, scenes, transformed


def test_the_card_has_recipe_classes_and_the_ap_of_the_last_evaluation(tmp_path):
    rows = transformed(scenes(4))
    trainer = DetrTrainer(model(), arguments(tmp_path, max_steps=1), train_dataset=rows, eval_dataset=rows)
    trainer.create_model_card()
    assert "AP50" not in (tmp_path / "README.md").read_text()
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(model_name="digits", license="mit")
    card = (tmp_path / "README.md").read_text()
    assert "# digits" in card
    assert "license: mit" in card
    assert "(1 steps)" in card
    assert "AP50" in card
    assert trainer.model.config.id2label[0] in card
