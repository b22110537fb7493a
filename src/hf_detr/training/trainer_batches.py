"""How DetrTrainer makes batches, to train and to evaluate on, of data sets and of streams."""

import time
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.streams import is_stream, share_of_stream, useful_workers
from ..evaluation.batches import CollateWithTargets, SameSizeBatches
from .rows import check_is_transformed, raw_rows, transform_of, with_closing
from .samplers import EpochOrder, ReproducibleSamples
from .streams import StreamBatches
from .time_limit import steps_per_epoch
from .trainer_evaluation import evaluated_sizes_hw


class BatchesMixin:
    """The part of `DetrTrainer` that makes batches."""

    def get_train_dataloader(self) -> DataLoader | StreamBatches:
        """As in Transformers, with an order and random numbers that follow from seed, epoch and image alone; of a
        stream, batches without end."""
        if self.train_dataset is None:
            return super().get_train_dataloader()
        if is_stream(self.train_dataset):
            return self._stream_batches()
        args = self.args
        strategy = getattr(args, "train_sampling_strategy", "random")
        if strategy not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy={strategy!r} is for text; see group_by_aspect_ratio.")
        sizes_hw = final_hw = None
        if args.group_by_aspect_ratio:
            rows = raw_rows(self.train_dataset, "height", "width")
            if rows is None or len(rows.column_names) < 2:
                raise ValueError("group_by_aspect_ratio needs a train_dataset with the columns width and height.")
            sizes_hw = list(zip(rows["height"], rows["width"], strict=True))
            transform = transform_of(self.train_dataset)
            if transform is not None and transform.tells_final_hw:
                final_hw = transform.final_hw
        batch_size = self._train_batch_size
        dataset, closing = with_closing(self.train_dataset)
        samples = ReproducibleSamples(dataset, self._data_seed, closing if args.augment_until < 1 else None)
        images = batch_size * args.world_size
        order = EpochOrder(samples, strategy == "random", sizes_hw, images, final_hw, args.repeated_augmentation)
        # workers that start anew with each epoch would keep the model waiting for them
        keep = args.dataloader_persistent_workers and args.dataloader_num_workers > 0
        loader = self._loader(
            samples,
            batch_size=batch_size,
            sampler=order,
            drop_last=args.dataloader_drop_last,
            persistent_workers=keep,
        )
        loader = self.accelerator.prepare(loader)
        if samples.closing is not None:
            steps = steps_per_epoch(args, loader)

            def is_closing(epoch: int, position: int) -> bool:
                step = epoch * steps + position // images // args.gradient_accumulation_steps
                # the length of the run as it is now: see `TimeLimit`; 0 outside of a run
                return 0 < round(self.state.max_steps * args.augment_until) <= step

            order.is_closing = is_closing
        return loader

    def _stream_batches(self) -> StreamBatches:
        args = self.args
        if args.group_by_aspect_ratio:
            raise ValueError("group_by_aspect_ratio needs to know all images; a stream tells them one by one.")
        if args.repeated_augmentation != 1:
            raise ValueError("repeated_augmentation needs a Dataset; a stream gives each row once a pass.")
        self._stream = StreamBatches(
            self.train_dataset,
            self._loader,
            self.data_collator,
            batch_size=self._train_batch_size,
            seed=self._data_seed,
            num_workers=args.dataloader_num_workers,
            drop_last=args.dataloader_drop_last,
            process_index=args.process_index,
            num_processes=args.world_size,
            device=args.device,
            non_blocking=args.dataloader_pin_memory,
        )
        if self._progress.get("stream") is not None:
            self._stream.load_state_dict(self._progress["stream"])
        return self._stream

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """This process's share of `eval_dataset` (a data set, a stream that ends, the name of one of several, or None
        for the trainer's); together, the processes see each image once, in batches of one size where rows tell it."""
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        elif isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        if eval_dataset is None:
            raise ValueError("There is no data set to evaluate on; give eval_dataset to the trainer, or to evaluate().")
        check_is_transformed(eval_dataset, "eval_dataset")
        args = self.args
        if is_stream(eval_dataset):
            if self.is_fsdp_enabled:
                raise ValueError(
                    "eval_dataset is a stream, whose shares of the processes differ; FSDP needs a Dataset."
                )
            stream = share_of_stream(eval_dataset, args.process_index, args.world_size)
            return self._loader(
                stream,
                batch_size=args.eval_batch_size,
                collate_fn=CollateWithTargets(self.data_collator),
                num_workers=useful_workers(stream, args.dataloader_num_workers),
            )
        share = SameSizeBatches(
            len(eval_dataset),
            args.eval_batch_size,
            evaluated_sizes_hw(eval_dataset),
            args.process_index,
            args.world_size,
            even=self.is_fsdp_enabled,
        )
        return self._loader(eval_dataset, batch_sampler=share)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As `get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        args = self.args
        settings = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
            "prefetch_factor": args.dataloader_prefetch_factor,
            # Its own, since a loader draws a number where it starts workers: in each epoch, or with workers that stay
            # in the first and in a resumed one. From the training's generator, dropout would differ after a resume.
            "generator": torch.Generator(),
        }
        return DataLoader(dataset, **(settings | options))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an optimizer step, and its boxes over all of them and all processes."""
        stream = self._stream
        if stream is not None and (stream.is_epoch_over or self.state.global_step >= self.state.max_steps):
            stream.begin_epoch(self.state.global_step)
            self.control.should_epoch_stop = True
            self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
            return [], None
        begun = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        self._waited_s += time.perf_counter() - begun
        if any("labels" not in batch for batch in batches):
            raise ValueError("train_dataset: its rows have no labels; keep the column 'objects'.")
        labels = [label for batch in batches for label in batch["labels"]]
        if self._lessons is not None:
            with self.accelerator.autocast():
                batches = [self._lessons(batch) for batch in batches]
        sizes, queries = [len(label["class_labels"]) for label in labels], self.model.config.num_queries
        through = stream is not None and stream.passes > stream.epochs
        counts: Any = [sum(sizes), len(sizes), sum(min(size, queries) for size in sizes), int(through)]
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        if stream is not None:
            stream.is_epoch_over = int(counts[3]) == self.args.world_size
        self._counts_of_step = {"num_images_in_batch": counts[1], "num_matched_in_batch": counts[2]}
        self._losses.begin_step(len(batches))
        return batches, counts[0]
