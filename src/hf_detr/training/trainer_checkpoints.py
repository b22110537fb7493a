"""What DetrTrainer writes into its folder, and reads back: checkpoints, and the model card."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from ..checkpoints.card_facts import base_of, card_facts
from ..checkpoints.model_card import model_card
from ..checkpoints.stock_check import StockCheck
from ..evaluation import CocoEvaluator
from ..evaluation.analysis import analyse
from ..evaluation.tasks import task_of
from ..visualization.analysis_plots import RUN_FIGURES, save_figure
from ..wording import counted
from .checkpoint_folders import TRAINED_WEIGHTS, TRAINING_ONLY

# Of each process: the losses since the last entry of the log, and the position in a stream.
_PROGRESS = "progress_{}.json"


class CheckpointMixin:
    """The part of `DetrTrainer` that saves and loads. Names with an underscore are Transformers' own.

    model.safetensors is what an inference takes, the average where there is one, without the parameters that only
    training has. What a resumed run needs as well lies in a file of its own beside it.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self._average is not None and state_dict is None:
            state_dict = self._average.model.state_dict()
        super()._save(output_dir, state_dict=state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saved last but for the trainer's state, whose presence marks a whole checkpoint."""
        super()._save_rng_state(output_dir)
        is_averaged, training_only = self._average is not None, getattr(self.model, "training_only", None)
        if self.args.should_save and (is_averaged or training_only is not None):
            part, file = (self.model, TRAINED_WEIGHTS) if is_averaged else (training_only, TRAINING_ONLY)
            weights = part.state_dict()
            if is_averaged:  # frozen weights and buffers are in model.safetensors
                known = self._average.model.state_dict()
                weights = {name: one for name, one in weights.items() if not _is_known(name, one, known)}
            save_file({name: one.contiguous() for name, one in weights.items()}, Path(output_dir) / file)
        progress = {
            "num_processes": self.args.world_size,
            "losses": self._losses.state_dict(),
            "stream": None if self._stream is None else self._stream.state_dict(self.state.global_step),
        }
        text = json.dumps(progress, default=lambda number: number.item())  # NumPy's
        Path(output_dir, _PROGRESS.format(self.args.process_index)).write_text(text, encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        trained = Path(resume_from_checkpoint) / TRAINED_WEIGHTS
        if trained.exists() != (self._average is not None):
            was = "with" if trained.exists() else "without"
            raise ValueError(f"{resume_from_checkpoint} was saved {was} ema_decay; resume {was} it.")
        training_only, saved = getattr(self.model, "training_only", None), Path(resume_from_checkpoint) / TRAINING_ONLY
        if self._average is None and saved.exists() != (training_only is not None):
            was = "with" if saved.exists() else "without"
            raise ValueError(
                f"{resume_from_checkpoint} was saved {was} training-only parameters; resume {was} it (see recipe)."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            self._average.restart(self.model)
            keys = self.model.load_state_dict(load_file(trained), strict=False)  # the others are as averaged
            other = [*keys.unexpected_keys, *(name for name in keys.missing_keys if name.startswith("training_only."))]
            if other:
                raise ValueError(
                    f"{resume_from_checkpoint} was saved with other training-only parameters ({other[0]}); resume with "
                    "the same recipe."
                )
        elif training_only is not None:
            training_only.load_state_dict(load_file(saved))

    def create_model_card(
        self,
        model_name: str | None = None,
        license: str | None = None,
        dataset: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        **_: Any,
    ) -> None:
        """Writes README.md into the output folder: recipe, model, and the AP of the last evaluation, with its precision
        against recall and confusion as PNG files. `dataset` is what the data is called, `dataset_tags` its name on the
        Hub."""
        if not self.is_world_process_zero():
            return
        args = self.args
        name = model_name or (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
        base_model, started_from = base_of(getattr(self.model, "name_or_path", None))
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # and this is one process of them
        splits = {"train": self.train_dataset, "evaluation": self.eval_dataset}
        sizes = {split: {"images": len(rows)} for split, rows in splits.items() if isinstance(rows, Dataset)}
        hub_id = dataset_tags[0] if isinstance(dataset_tags, list) else dataset_tags
        title = ", ".join(dataset) if isinstance(dataset, list) else dataset or hub_id
        data = {"name": title, "hub_id": hub_id, "splits": sizes}
        facts = card_facts(
            self.model,
            name,
            args.hub_model_id,
            StockCheck("unchecked", reason="its weights were spread over processes") if is_sharded else None,
            license=license,
            base_model=base_model,
            dataset=data if sizes or title else None,
            recipe={
                "started from": started_from,
                "epochs": f"{self.state.epoch or 0:g} ({counted(self.state.global_step, 'step')})",
                "images a step": self._train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "learning rate": args.rates_text,
                "weight decay": f"{args.weight_decay:g}",
                "gradients clipped at": f"{args.max_grad_norm:g}",
                "seed": args.seed,
            },
        )
        if self.evaluator is not None and len(self.evaluator):
            facts["task"] = task_of(self.model, self.eval_dataset)
            facts["evaluation"] = {"split": "evaluation", "metrics": self.evaluator.compute()}
            if self.state.best_model_checkpoint:
                facts["evaluation"]["selection_split"] = "evaluation"
            if isinstance(self.evaluator, CocoEvaluator):  # panoptic segments are not ranked by score
                analysis = analyse(self.evaluator)
                facts["figures"] = {
                    name: save_figure(make(analysis), Path(args.output_dir, name)) for name, make in RUN_FIGURES.items()
                }
        Path(args.output_dir, "README.md").write_text(model_card(facts), encoding="utf-8")


def _is_known(name: str, tensor: Tensor, averaged: dict[str, Tensor]) -> bool:
    """Whether model.safetensors, which holds the average, has this tensor bit for bit."""
    return not name.startswith("training_only.") and tensor.is_floating_point() and tensor.equal(averaged[name])


def read_progress(checkpoint: str | Path, args: TrainingArguments) -> dict[str, Any]:
    """What this process wrote beside the random numbers: `losses`, `stream`. Empty where it did not.

    The losses of another number of processes are left out. A position in a stream is, with `ignore_data_skip`.
    """
    path = Path(checkpoint, _PROGRESS.format(args.process_index))
    if not path.exists():
        return {}
    progress = json.loads(path.read_text(encoding="utf-8"))
    if progress.pop("num_processes") != args.world_size:
        progress["losses"] = None
    if args.ignore_data_skip:
        progress["stream"] = None
    return progress
