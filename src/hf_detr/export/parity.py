"""Whether an exported file answers as the model does, on images of shapes that it was not traced with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of an output over all inputs, and the inputs that it was seen with."""

    output: str
    value: float
    where: str


def trial_inputs(
    num_channels: int, sides_px: tuple[int, int], post_process: bool, seed: int = 0
) -> Iterator[tuple[str, Inputs]]:
    """Three inputs unlike the traced one, each with its name: another shape, one that is padded, another batch.

    `sides_px` are the height and width to make them from.
    """
    height, width = sides_px
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "one image of another shape": [(height, width + width // 4)],
        "a padded batch": [(height, width), (height - height // 4, width - width // 3)],
        "a batch of three": [(height + height // 4, width)] * 3,
    }
    for name, sizes_hw in shapes.items():
        tallest, widest = (max(size[side] for size in sizes_hw) for side in (0, 1))
        pixels = torch.zeros(len(sizes_hw), num_channels, tallest, widest)
        mask = torch.zeros(len(sizes_hw), tallest, widest, dtype=torch.int64)
        for index, (h, w) in enumerate(sizes_hw):
            pixels[index, :, :h, :w] = torch.randn(num_channels, h, w, generator=generator)
            mask[index, :h, :w] = 1
        inputs = {"pixel_values": pixels, "pixel_mask": mask}
        if post_process:
            inputs["target_sizes"] = torch.tensor(sizes_hw, dtype=torch.float32)
        yield name, inputs


@torch.no_grad()
def worst_difference(
    graph: Callable[..., dict[str, Tensor]],
    exported: Callable[..., dict[str, Tensor]],
    inputs: Iterator[tuple[str, Inputs]],
) -> Difference:
    """The largest difference between the outputs of two callables over the inputs; NaN on one side alone is infinite.

    Boxes in pixels count as shares of their image, and masks as probabilities; labels of queries whose two best classes
    tie are left out, since either is right.
    """
    worst = Difference("", -1.0, "")
    for name, batch in inputs:
        expected, found = graph(**batch), exported(**batch)
        for output, reference in expected.items():
            value = found[output]
            if value.shape != reference.shape:
                difference = float("inf")
            elif output == "labels":
                difference = 0.0  # follows from the scores, which are compared
            else:
                reference, value = reference.double(), value.double()
                if output == "boxes":
                    scale = batch["target_sizes"].double().flip(-1).repeat(1, 2)[:, None]
                    reference, value = reference / scale, value / scale
                elif output == "pred_masks":
                    reference, value = reference.sigmoid(), value.sigmoid()
                same = (reference.isnan() & value.isnan()) | (reference == value)
                gaps = torch.where(same, 0.0, (reference - value).abs()).nan_to_num(nan=float("inf"))
                difference = float(gaps.max()) if gaps.numel() else 0.0
            if difference > worst.value:
                worst = Difference(output, difference, name)
    return worst
