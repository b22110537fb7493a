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


class _PublishedLayout(ConvEncoder):
    """The backbone without the change to channels-last."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.model(pixel_values)
        last = (features.feature_maps if hasattr(features, "feature_maps") else features)[-1]
        return last.permute(0, 3, 1, 2) if self._is_channels_last else last


def _without_folding(model: torch.nn.Module) -> None:
    from hf_detr.nn.folding import unfold_norms

    _without_fused_blocks(model)  # which rest on it
    unfold_norms(model.model.backbone)


def _without_fused_blocks(model: torch.nn.Module) -> None:
    from hf_detr.nn.fused_blocks import part_blocks

    part_blocks(model.model.backbone)


def _without_channels_last(model: torch.nn.Module) -> None:
    model.model.backbone.conv_encoder.__class__ = _PublishedLayout


def _without_frozen_stem(model: torch.nn.Module) -> None:
    model.unfreeze_backbone()


# what is taken back -> how
TAKEN_BACK: dict[str, dict[str, Callable[[torch.nn.Module], None]]] = {
    "inference": {
        "norms folded into convolutions": _without_folding,
        "sums and ReLUs in the convolutions' pass": _without_fused_blocks,
        "channels last": _without_channels_last,
        "no mask where nothing is padded": lambda model: None,  # the call differs
    },
    "training": {
        "norms folded into convolutions": _without_folding,
        "sums and ReLUs in the convolutions' pass": _without_fused_blocks,
        "channels last": _without_channels_last,
        "stem and first stage frozen": _without_frozen_stem,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TAKEN_BACK, help="one of the two")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each of the two")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.logging.disable_progress_bar()
    device = torch.device(args.device)
    told = {"program": "each_change", "environment": describe(device, quick=False), "stamp": stamp(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder))
        for case in [args.only] if args.only else TAKEN_BACK:
            works = (_inference if case == "inference" else _training)(checkpoint, device)
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


def _inference(checkpoint: Path, device: torch.device) -> dict[str, Callable[[], object]]:
    """One image of 800 x 1066, float32."""
    pixels = batch(1, 800, 1066).to(device)
    mask = torch.ones(1, 800, 1066, dtype=torch.int64, device=device)

    def work(model: torch.nn.Module, pixel_mask: torch.Tensor | None = None) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return model(pixels, pixel_mask)

        return run

    works = {"as it is": work(ours(checkpoint, device))}
    for name, take_back in TAKEN_BACK["inference"].items():
        model = ours(checkpoint, device)
        take_back(model)
        works[name] = work(model, mask if "mask" in name else None)
    _warm_up(works)
    return works


def _training(checkpoint: Path, device: torch.device) -> dict[str, Callable[[], object]]:
    """A step of AdamW on 2 images of 480 x 640 with 7 objects each, float32."""
    pixels, targets = batch(2, 480, 640).to(device), labels([7, 7])
    targets = [{name: value.to(device) for name, value in label.items()} for label in targets]

    def work(take_back: Callable[[torch.nn.Module], None]) -> Callable[[], object]:
        model = ours(checkpoint, device, auxiliary_loss=True).train()
        take_back(model)
        return training_step(model, lambda: model(pixels, labels=targets).loss)

    works = {"as it is": work(lambda model: None)}
    for name, take_back in TAKEN_BACK["training"].items():
        works[name] = work(take_back)
    _warm_up(works)
    return works


def _warm_up(works: dict[str, Callable[[], object]]) -> None:
    for work in works.values():
        work()


if __name__ == "__main__":
    main()
