"""Recipes: what they set, what of them is left in files, and that a run with them resumes exactly."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_detr.training import DetrTrainer
from hf_detr.training.ema import WeightAverage

from .conftest import arguments, model, scenes, training_log, transformed

RUN = {
    "num_train_epochs": 2,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}
HELP = {"denoising_queries": 3, "query_groups": 2}  # beside what the recipe has


def test_fast_helps_in_training_and_paper_does_not(make_trainer):
    fast = make_trainer(model(), rows=scenes(4), recipe="fast", num_train_epochs=1)
    assert fast.model.config.encoder_auxiliary_loss
    fast.train()
    assert all("loss_encoder" in entry for entry in training_log(fast))
    paper = make_trainer(model(denoising_queries=2), rows=scenes(4), recipe="paper")
    assert paper.model.config.denoising_queries == 0
    assert paper.model.training_only is None
    assert make_trainer(model(denoising_queries=2)).model.config.denoising_queries == 2  # no recipe: the model's own


def test_what_a_recipe_sets_can_be_set_otherwise(make_trainer):
    trainer = make_trainer(
        model(),
        recipe="fast",
        denoising_queries=1,
        query_groups=2,
        encoder_auxiliary_loss=False,
        ema_decay=0,
    )
    config = trainer.model.config
    assert (config.denoising_queries, config.query_groups) == (1, 2)
    assert not config.encoder_auxiliary_loss
    assert not trainer.args.averages_weights


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"recipe": "fast"}, [1e-3, 1e-5, 1e-2, 1e-3]),  # the last: the transformer's matrices
        ({"recipe": "fast", "class_head_learning_rate": 3e-3}, [1e-3, 1e-5, 3e-3, 1e-3]),
        ({"recipe": "paper"}, [1e-3, 1e-5]),
        ({"class_head_learning_rate": 3e-3}, [1e-3, 1e-5, 3e-3]),
    ],
)
def test_fast_lets_the_class_head_learn_ten_times_as_fast(make_trainer, settings, rates):
    optimizer = make_trainer(model(), rows=scenes(2), **settings).create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_a_model_made_by_model_init_has_the_recipe_too(tmp_path):
    args = arguments(tmp_path, recipe="fast", ema_decay=0, eval_strategy="no")
    trainer = DetrTrainer(args=args, model_init=lambda: model(), train_dataset=transformed(scenes(2)))
    trainer.train()
    assert trainer.model.config.encoder_auxiliary_loss


def test_files_of_a_run_are_plain_detrs(make_trainer, tmp_path):
    trainer = make_trainer(model(), rows=scenes(2), recipe="fast", **HELP, **{**RUN, "num_train_epochs": 1})
    trainer.train()
    trainer.save_model(tmp_path / "end")
    for folder in (tmp_path / "end", tmp_path / "run" / "checkpoint-1"):
        _, info = transformers.DetrForObjectDetection.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


@pytest.mark.parametrize("ema_decay", [None, 0], ids=["averaged", "not averaged"])
def test_a_resumed_run_ends_as_an_undisturbed_one(make_trainer, ema_decay):
    options = {"rows": scenes(6), "recipe": "fast", **HELP, "ema_decay": ema_decay, **RUN}
    whole = make_trainer(model(dropout=0.1), **options)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-3"
    torch.manual_seed(11)
    resumed = make_trainer(model(dropout=0.1, seed=4), **{**options, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=checkpoint)
    for before, after in zip(training_log(whole)[3:], training_log(resumed)[-3:], strict=True):
        for name in ("loss_denoising", "loss_groups", "loss_encoder"):
            assert after[name] == pytest.approx(before[name], rel=1e-6)
    ended = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        # the average of parameters that no inference has is started anew
        if ema_decay == 0 or "training_only" not in name:
            torch.testing.assert_close(ended[name], value, rtol=0, atol=1e-6, msg=name)


def test_resuming_with_other_help_says_so(make_trainer):
    trainer = make_trainer(model(), rows=scenes(2), recipe="fast", denoising_queries=2, ema_decay=0, num_train_epochs=1,
                           **{name: value for name, value in RUN.items() if name != "num_train_epochs"})  # fmt: skip
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    assert "queries.label_contents.weight" in load_file(f"{checkpoint}/training_only.safetensors")
    with pytest.raises(ValueError, match="was saved with training-only parameters; resume with it"):
        make_trainer(model(), rows=scenes(2), **RUN).train(resume_from_checkpoint=checkpoint)


def test_impossible_recipes_are_errors(tmp_path, make_trainer):
    with pytest.raises(ValueError, match="recipe='quick' is none of 'paper', 'fast'"):
        arguments(tmp_path, recipe="quick")
    with pytest.raises(ValueError, match=r"ema_decay=1\.5"):
        arguments(tmp_path, ema_decay=1.5)
    with pytest.raises(ValueError, match="class_head_learning_rate=-1"):
        arguments(tmp_path, class_head_learning_rate=-1)
    with pytest.raises(ValueError, match="query_groups=0"):
        make_trainer(model(), query_groups=0)


def test_without_a_decay_the_average_is_over_a_share_of_the_steps_so_far():
    weight = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(weight, None)
    for steps in (400, 4000):
        for step in range(1, steps + 1):
            with torch.no_grad():
                weight.weight.fill_(step)
            average.update(weight, step)
        # the mean of 1 to n under the weight (i / n) ** 16: about 17 / 18 of n
        assert average.model.weight.item() / steps == pytest.approx(17 / 18, abs=0.01)
        average.restart(weight)
