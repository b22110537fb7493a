"""An exported folder as a model of torch: to evaluate what was written as the model itself is evaluated."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from .runtime import open_graph

Run = Callable[..., dict[str, Tensor]]


class ExportedDetector(nn.Module):
    """The graph of an exported folder; its outputs have the model's names, for processor and evaluators.

    `run(**inputs)` is the graph itself, tensors in and tensors out; without parameters, on the CPU.
    """

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError for a folder without a graph, ImportError without what runs it."""
        super().__init__()
        self.run = _runner(Path(folder))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> SimpleNamespace:
        """(B, C, H, W), and (B, H, W), 1 on the image, where something is padded -> `logits`, `pred_boxes` and, of a
        model with masks, `pred_masks`."""
        if pixel_mask is None:
            pixel_mask = torch.ones(len(pixel_values), *pixel_values.shape[-2:], dtype=torch.int64)
        outputs = self.run(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return SimpleNamespace(**{"pred_masks": None, **outputs})


def _runner(folder: Path) -> Run:
    if (folder / "model.pt2").is_file():
        graph = torch.export.load(folder / "model.pt2").module()
        return torch.no_grad()(graph)
    if (folder / "model.pte").is_file():
        from transformers.exporters import ExportedModel

        return ExportedModel.from_pretrained(folder)
    graph = open_graph(folder)

    def run(**inputs: Tensor) -> dict[str, Tensor]:
        outputs = graph({name: value.contiguous().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in outputs.items()}

    return run
