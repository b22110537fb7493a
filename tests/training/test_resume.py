"""A run that was interrupted ends as if it had not been."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_detr.training import last_checkpoint

from .conftest import model, scenes, trainer_maker, training_log

DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
RUN = {
    "rows": scenes(6),
    "test": scenes(2, "test"),
    "augment": "paper",
    "num_train_epochs": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
    "load_best_model_at_end": False,
    "ema_decay": 0.9,
    "lr_drop_at": 0.7,
    "group_by_aspect_ratio": True,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A trainer after nine steps in three epochs, with a checkpoint of each step."""
    trainer = trainer_maker(tmp_path_factory.mktemp("undisturbed"))(model(**DROPOUT), **RUN)
    trainer.train()
    return trainer


# in the middle of an epoch, and between two; with the images loaded by another process, which outlives epochs
@pytest.mark.parametrize(("step", "workers"), [(2, 0), (2, 1), (3, 1)])
def test_a_resumed_run_has_the_losses_and_weights_of_an_undisturbed_one(undisturbed, make_trainer, step, workers):
    torch.manual_seed(17)
    resumed = make_trainer(model(**DROPOUT, seed=5), **{**RUN, "save_strategy": "no"}, dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=Path(undisturbed.args.output_dir) / f"checkpoint-{step}")

    assert resumed.state.global_step == undisturbed.state.global_step == 9
    before, after = training_log(undisturbed), training_log(resumed)
    for entry, again in zip(before, after, strict=True):
        for name in (name for name in entry if name.startswith("loss") or name == "learning_rate"):
            assert again[name] == pytest.approx(entry[name], rel=1e-6, abs=1e-6), (entry["step"], name)
    evaluations = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e] for t in (undisturbed, resumed)]
    assert len(evaluations[0]) == 3
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-6)
    for (name, weight), (_, again) in zip(
        undisturbed.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(again, weight, rtol=0, atol=1e-6, msg=name)


# in the first epoch and in the second
@pytest.mark.parametrize("step", [1, 5])
def test_the_logged_loss_of_an_epoch_is_that_of_all_its_steps_after_a_resume(make_trainer, tmp_path, step):
    settings = {"rows": scenes(6), "num_train_epochs": 2, "logging_strategy": "epoch", "save_strategy": "steps"}
    settings |= {"save_steps": 1, "save_total_limit": None}
    undisturbed = make_trainer(**settings)
    undisturbed.train()
    resumed = make_trainer(model(seed=5), folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=tmp_path / "run" / f"checkpoint-{step}")
    before, after = training_log(undisturbed), training_log(resumed)
    assert [entry["step"] for entry in after] == [3, 6]
    names = [name for name in before[0] if name.startswith("loss") or name.endswith("_error")]
    assert len(names) > 4
    for entry, again in zip(before, after, strict=True):
        assert [again[name] for name in names] == [entry[name] for name in names]


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(make_trainer, tmp_path):
    trainer = make_trainer(rows=scenes(6), save_strategy="steps", save_steps=1, save_total_limit=None)
    trainer.train()
    run = tmp_path / "run"
    assert last_checkpoint(run) == run / "checkpoint-3"
    (run / "checkpoint-3" / "trainer_state.json").write_text('{"best_')
    assert last_checkpoint(run) == run / "checkpoint-2"
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    again = make_trainer(rows=scenes(6), save_strategy="no")
    again.train(resume_from_checkpoint=True)
    assert training_log(again)[1]["step"] == 2  # its first own step; the one before comes from the checkpoint
    assert [entry["step"] for entry in training_log(again)] == [1, 2, 3]
    with pytest.raises(ValueError, match="checkpoint-2 is no checkpoint, or was not written to its end"):
        again.train(resume_from_checkpoint=run / "checkpoint-2")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "training_weights.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_checkpoint_with_a_file_that_was_cut_off_is_passed_over(undisturbed, tmp_path, file, share):
    for step in (1, 2):
        source = Path(undisturbed.args.output_dir) / f"checkpoint-{step}"
        shutil.copytree(source, tmp_path / source.name)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    content = (tmp_path / "checkpoint-2" / file).read_bytes()
    (tmp_path / "checkpoint-2" / file).write_bytes(content[: int(share * len(content))])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_resuming_without_a_checkpoint_or_without_its_average_is_an_error(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)
    make_trainer(rows=scenes(2), ema_decay=0.9).train()
    with pytest.raises(ValueError, match="was saved with ema_decay; resume with it"):
        make_trainer(rows=scenes(2)).train(resume_from_checkpoint=True)


def _anyone_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


SCRIPT = """
import sys
from tests.training.conftest import arguments, model, scenes, transformed
from hf_detr.training import DetrTrainer, last_checkpoint
folder = sys.argv[1]
args = arguments(folder, num_train_epochs=4, eval_strategy="no", save_strategy="steps", save_steps=2, ema_decay=0.9,
                 dataloader_num_workers=1, group_by_aspect_ratio=True)
detector = model(dropout=0.1)
trainer = DetrTrainer(detector, args, train_dataset=transformed(scenes(12), "paper"))
trainer.train(resume_from_checkpoint=last_checkpoint(folder) is not None)
trainer.save_model(folder + "/end")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, env=environment, cwd=root)
    expected = load_file(tmp_path / "undisturbed" / "end" / "model.safetensors")
    for attempt in range(5):
        folder, kills = tmp_path / f"killed-{attempt}", 0
        while not (folder / "end" / "model.safetensors").exists():
            process = subprocess.Popen([*command, str(folder)], env=environment, cwd=root, start_new_session=True)
            seen = last_checkpoint(folder)
            while process.poll() is None and kills < 1 and last_checkpoint(folder) == seen:
                time.sleep(0.02)
            if process.poll() is None and kills < 1:
                time.sleep(random.uniform(0, 1.0))
                process.send_signal(signal.SIGKILL)
                kills += 1
            assert process.wait() in (0, -signal.SIGKILL)
            deadline = time.monotonic() + 60  # workers look for their parent every five seconds
            while _anyone_left(process.pid):
                assert time.monotonic() < deadline, "workers have outlived the training"
                time.sleep(0.2)
        assert kills
        ended = load_file(folder / "end" / "model.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(ended[name], weight, rtol=0, atol=1e-6, msg=name)


def test_a_checkpoint_holds_no_tensor_twice_and_no_optimizer_state_of_what_is_frozen(make_trainer, tmp_path):
    detector = model()  # backbone stem and norms frozen
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    trainer = make_trainer(detector, rows=scenes(6), recipe="fast", num_train_epochs=2)
    trainer.train()
    checkpoint = last_checkpoint(tmp_path / "run")
    averaged, trained = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "training_weights"))
    assert frozen
    assert not frozen & trained.keys()
    assert not any(name in averaged and tensor.equal(averaged[name]) for name, tensor in trained.items())
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    shapes = [parameter.shape for parameter in detector.parameters() if parameter.requires_grad]
    kept = [one.get("exp_avg", one.get("momentum_buffer")).shape for one in optimizer["state"].values()]
    assert sorted(kept) == sorted(shapes)
