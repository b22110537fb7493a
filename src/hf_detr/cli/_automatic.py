"""The settings that `hf-detr train` is left to pick: facts in, `hf_detr.training.automatic` asked, words out."""

import argparse
import os
from typing import Any

import torch

from hf_detr.configuration_detr import DetrConfig
from hf_detr.training.automatic import (
    RULES,
    DataFacts,
    Machine,
    Pick,
    Start,
    measure,
    objects_an_image,
    pick,
    queries_for,
)
from hf_detr.wording import counted

from ._errors import about
from ._running import choose_device, load_processor

REMEDY = (
    "without the Hub take --model imagenet, the start that this package carries (tiny for images of some 100 pixels), "
    "the folder of another one, or a fresh one by --backbone resnet50"
)
# Settings that tell what the model sees, which have a line of their own.
_OF_IMAGES = ("num_queries", "image_size", "dropout", "augment", "recipe")
_FURTHER = ("max_steps", "gradient_accumulation", "repeated_augmentation")  # that rules look at


class Automatic:
    """The open settings of one run. ValueError for a start that cannot be had."""

    data: DataFacts
    picks: dict[str, Pick]

    def __init__(self, args: argparse.Namespace):
        self.args, self.start, self.machine = args, read_start(args), _machine(args.device)
        self.given = {name: getattr(args, name) for name in RULES if getattr(args, name) is not None}
        if args.max_steps or args.time_limit:
            self.given["epochs"] = args.epochs
        self.objects: list[int] | None = None  # of each image

    def num_queries(self, objects: list[int]) -> int:
        """The number that a check of the data judges by, which is that of the run; remembers the objects an image."""
        self.objects = objects
        return self.args.num_queries or queries_for(self.start, objects)

    def settle(self, splits: Any) -> None:
        """Sets what is open in `args`; once more after a batch size "auto" is found."""
        if self.objects is None:
            self.objects = objects_an_image(splits.by_name.values())
        if self.given.get("batch_size") == "auto":
            self.given["batch_size"] = self.args.batch_size
        self.data = measure(splits.train, self.objects, len(splits.validation))
        further = {name: getattr(self.args, name) for name in _FURTHER if hasattr(self.args, name)}
        self.picks = pick(self.data, self.start, self.machine, self.given | further)
        for name, one in self.picks.items():
            setattr(self.args, name, one.value)

    def lines(self) -> str:
        """What was picked and why: a line on what it follows from, one on model and images, one on the training."""
        data, picks = self.data, self.picks.items()
        lines = [
            f"settings for {counted(data.images, 'image')} of {data.edge_px} px with {data.objects_median:g} objects, "
            f"{counted(data.classes, 'class', 'classes')}, from {self._start_name}, on {self._device} (--explain has "
            "the table; options override them)"
        ]
        for of_images in (True, False):
            said = [f"{one.words} ({one.because})" for name, one in picks if (name in _OF_IMAGES) == of_images]
            lines += ["  " + ", ".join(said)] if said else []
        return "\n".join(lines) if picks else ""

    def table(self) -> str:
        """The facts; then every setting with its value, whether it was picked or given, and why."""
        data, start = self.data, self.start
        of_start = "" if start.is_fresh else f", {start.num_queries} queries, images of {start.edge_px} px"
        facts = [
            ("images to train on", f"{data.images:,}, shortest edge {data.edge_px} px in the median one"),
            ("images to evaluate on", f"{data.evaluated_images:,}"),
            (
                "objects an image",
                f"{data.objects_median:g} median, {data.objects_99} 99th percentile, {data.objects_most} most",
            ),
            ("small boxes", f"a tenth, by class, are below {data.small_box:.3f} of the shortest edge of their image"),
            ("classes", f"{data.classes:,}, the rarest with {counted(data.rarest, 'object')}"),
            ("start", f"{self._start_name}: width {start.width}, a cell every {start.stride} px{of_start}"),
            ("machine", f"{self._device}, {counted(self.machine.processes, 'process', 'processes')}"),
        ]
        settings = [("setting", "value", "", "because")]
        for name in RULES:
            value, picked = getattr(self.args, name), self.picks.get(name)
            nothing = {"image_size": f"{start.edge_px}", "dropout": "the start's", "epochs": "as many as fit"}
            shown = nothing[name] if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value}"
            why = ("picked", picked.because) if picked else ("given", "")
            settings.append((f"--{name.replace('_', '-')}", shown, *why))
        return f"{_columns(facts)}\n\n{_columns(settings)}"

    @property
    def _start_name(self) -> str:
        return f"a fresh DETR on {self.args.backbone}" if self.start.is_fresh else self.args.model

    @property
    def _device(self) -> str:
        return f"a GPU of {self.machine.gpu_gib:.0f} GiB" if self.machine.gpu_gib else "a CPU"


def read_start(args: argparse.Namespace) -> Start:
    """What `args` name to start from; no weights are read. ValueError, naming it, where there is none."""
    if args.backbone:
        live, width, stride = not args.pretrained_backbone, args.d_model, args.output_stride
        return Start(True, num_queries=None, edge_px=None, stride=stride, width=width, backbone_is_live=live)
    with about(args.model, REMEDY):
        config = DetrConfig.from_pretrained(args.model)
    size = dict(load_processor(args.model).size)
    sides = [size.get(name) for name in ("height", "width", "max_height", "max_width")]
    return Start(
        num_queries=config.num_queries,
        edge_px=size.get("shortest_edge") or min(side for side in sides if side),
        stride=getattr(config.backbone_config, "output_stride", None) or 32,
        width=config.d_model,
        backbone_is_live=not config.freeze_backbone_norms,
        is_frozen=args.freeze_detector,
    )


def _machine(device: str) -> Machine:
    processes, found = int(os.environ.get("WORLD_SIZE", "1")), choose_device(device)
    if found.type != "cuda":
        return Machine(processes=processes)
    return Machine(torch.cuda.get_device_properties(found).total_memory / 2**30, processes)


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    return "\n".join("".join(map(str.ljust, row, widths)).rstrip() for row in rows)
