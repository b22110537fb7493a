"""What each change to the model gave: one of them taken back at a time, beside the model as it is.

    python benchmarks/each_change.py                    # writes benchmarks/results/each_change_<device>.json
    python benchmarks/each_change.py --only training

A ratio above 1 says how many times as long it takes without that change. The contestants take turns in one process.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from contestants import ours, training_step, write_checkpoint
from environment import describe, stamp
from hf_detr.nn.backbone import ConvEncoder
from inputs import batch, labels
from measure import alternate, ratios, summarise
from report import save

RESULTS = Path(__file__).resolve().parent / "results"


class _AllAtOnce(ConvEncoder):
    """The backbone on the whole batch, however large."""

    def _images_at_once(self, pixel_values: torch.Tensor) -> None:
        return None


class _PublishedLayout(ConvEncoder):
    """The backbone without the change to channels-last."""

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.model(pixel_values)
        last = (features.feature_maps if hasattr(features, "feature_maps") else features)[-1]
        return last.permute(0, 3, 1, 2) if self._is_channels_last else last


def _without_folding(model: torch.nn.Module) -> None:
    from hf_detr.nn.folding import unfold_norms

    _without_fused_stages(model)  # which rest on it
    unfold_norms(model.model.backbone)


def _without_fused_stages(model: torch.nn.Module) -> None:
    from hf_detr.nn.fused_stages import part_stages

    part_stages(model.model.backbone)


def _without_channels_last(model: torch.nn.Module) -> None:
    model.model.backbone.conv_encoder.__class__ = _PublishedLayout


def _all_at_once(model: torch.nn.Module) -> None:
    model.model.backbone.conv_encoder.__class__ = _AllAtOnce


def _without_frozen_stem(model: torch.nn.Module) -> None:
    model.unfreeze_backbone()


_OF_BOTH = {
    "norms folded into convolutions": _without_folding,
    "blocks written over their shortcuts": _without_fused_stages,
    "channels last": _without_channels_last,
}
_OF_INFERENCE = {**_OF_BOTH, "no mask where nothing is padded": lambda model: None}  # the call differs
_OF_TRAINING = {**_OF_BOTH, "stem and first stage frozen": _without_frozen_stem}


@dataclass(frozen=True)
class _Case:
    """Images of one size, and what is taken back -> how."""

    images: tuple[int, int, int]  # batch, height, width
    taken_back: dict[str, Callable[[torch.nn.Module], None]]
    bf16: bool = False


CASES = {
    "inference": _Case((1, 800, 1066), _OF_INFERENCE),
    "inference in bf16": _Case((1, 800, 1066), _OF_BOTH, bf16=True),
    "inference of eight": _Case((8, 720, 853), {**_OF_BOTH, "few images at once": _all_at_once}),
    "training": _Case((2, 480, 640), _OF_TRAINING),
    "training in bf16": _Case((2, 480, 640), _OF_TRAINING, bf16=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one of them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each case")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.logging.disable_progress_bar()
    device = torch.device(args.device)
    told = {"program": "each_change", "environment": describe(device, quick=False), "stamp": stamp(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder))
        for case in [args.only] if args.only else CASES:
            works = (_training if "training" in case else _inference)(CASES[case], checkpoint, device)
            for work in works.values():
                work()  # warm up
            samples = alternate(works, device, args.seconds, 3, args.rounds)
            mine = samples.pop("as it is")
            told["cases"][case] = {"as it is": summarise(mine)} | {
                name: {**summarise(theirs), "ratio": ratios(mine, theirs)} for name, theirs in samples.items()
            }
            print(f"{case}: {summarise(mine)['median'] * 1000:.0f} ms")
            for name, theirs in samples.items():
                print(f"  without {name}: {ratios(mine, theirs)['median']:.2f} times as long")
    path = RESULTS / f"each_change_{device.type}.json"
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    told["cases"] = {**kept, **told["cases"]}
    save(path, told)
    print(path)


def _inference(case: _Case, checkpoint: Path, device: torch.device) -> dict[str, Callable[[], object]]:
    pixels = batch(*case.images).to(device)
    mask = torch.ones_like(pixels[:, 0], dtype=torch.int64)

    def work(model: torch.nn.Module, pixel_mask: torch.Tensor | None = None) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
                return model(pixels, pixel_mask)

        return run

    works = {"as it is": work(ours(checkpoint, device))}
    for name, take_back in case.taken_back.items():
        model = ours(checkpoint, device)
        take_back(model)
        works[name] = work(model, mask if "mask" in name else None)
    return works


def _training(case: _Case, checkpoint: Path, device: torch.device) -> dict[str, Callable[[], object]]:
    """A step of AdamW with 7 objects an image."""
    pixels, targets = batch(*case.images).to(device), labels([7] * case.images[0])
    targets = [{name: value.to(device) for name, value in label.items()} for label in targets]

    def work(take_back: Callable[[torch.nn.Module], None]) -> Callable[[], object]:
        model = ours(checkpoint, device, auxiliary_loss=True).train()
        take_back(model)

        def loss() -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
                return model(pixels, labels=targets).loss

        return training_step(model, loss)

    return {name: work(take_back) for name, take_back in {"as it is": lambda model: None, **case.taken_back}.items()}


if __name__ == "__main__":
    main()
