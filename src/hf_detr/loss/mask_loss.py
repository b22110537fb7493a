"""The masks' part of the loss: focal loss and Dice loss of each matched query's mask (paper, 4.4).

Predictions are logits at the resolution of the backbone's finest map. As published they are brought to the image's size
and compared with the object's mask pixel by pixel; `resolution` may be "mask", which compares at the predictions' own
cells, or "points", at random locations, for less memory and time.

Padding does not count, neither in the sums nor in the number of pixels that the focal loss is a mean over: a loss must
not depend on the image beside. The original counts it, with targets of 0, and `on_padding` does so too.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration_detr import DetrConfig
from .targets import Targets, to_device

# B images of height x width, N objects of all images, M matched queries, P compared pixels of a mask

_ALPHA = 0.25  # weight of pixels on the object in the focal loss, 1 - it of the others (Lin et al., 2017)


@dataclass(frozen=True)
class MaskCriterion:
    """Focal loss and Dice loss of matched pairs. No parameters; `from_config` makes it from a `DetrConfig`.

    Attributes:
        mask_loss_coefficient, dice_loss_coefficient: weights of the two.
        resolution: "image", "mask" or "points".
        num_points: of each mask, with "points"; uniformly drawn over the canvas.
        on_padding: whether padding counts as pixels off the object.
    """

    mask_loss_coefficient: float = 1.0
    dice_loss_coefficient: float = 1.0
    resolution: str = "image"
    num_points: int = 12544
    on_padding: bool = False

    @classmethod
    def from_config(cls, config: DetrConfig) -> "MaskCriterion":
        """With the coefficients and settings of the configuration."""
        return cls(
            config.mask_loss_coefficient,
            config.dice_loss_coefficient,
            config.mask_loss_resolution,
            config.mask_loss_points,
            config.mask_loss_on_padding,
        )

    def __call__(
        self,
        mask_logits: Tensor,
        targets: Targets,
        target: Tensor,
        canvas_hw: tuple[int, int],
        pixel_mask: Tensor | None,
        num_boxes: Tensor | float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and `loss_mask` and `loss_dice` without weights, all () and float32.

        Args:
            mask_logits: (M, h, w) of the matched queries. With no match at all, any query's (1, h, w): it counts as 0
                but stays in the graph, so that every parameter has a gradient.
            target: (M,) int64, each query's object in `targets`.
            canvas_hw: size of `pixel_values`.
            pixel_mask: (B, height, width), 1 on image, or None where nothing is padded.
            num_boxes: what the sums over objects are divided by.
        """
        with torch.autocast(mask_logits.device.type, enabled=False):
            logits = mask_logits if mask_logits.dtype == torch.float64 else mask_logits.float()
            zero = 0 * logits.sum()  # NaN where any logit is infinite, which the losses alone might not show
            if not len(target):
                return zero, {"loss_mask": zero, "loss_dice": zero}
            wanted = _on_canvas(targets.masks, canvas_hw)[target]  # (M, height, width) bool
            counted = None if self.on_padding else _on_image(targets, canvas_hw, pixel_mask)
            counted = None if counted is None else counted[targets.image_index[target]]
            logits, wanted, counted = self._compared(logits, wanted, counted)  # (M, P)
            focal, dice = _focal_and_dice(logits, wanted, counted)
            parts = {"loss_mask": focal.sum() / num_boxes + zero, "loss_dice": dice.sum() / num_boxes + zero}
            weighted = self.mask_loss_coefficient * parts["loss_mask"] + self.dice_loss_coefficient * parts["loss_dice"]
            return weighted, parts

    def _compared(self, logits: Tensor, wanted: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predictions and targets at the same P locations."""
        canvas_hw, size_hw = wanted.shape[1:], logits.shape[1:]
        if self.resolution == "image":
            logits = F.interpolate(logits[:, None], size=canvas_hw, mode="bilinear", align_corners=False)[:, 0]
            return logits.flatten(1), wanted.flatten(1), None if counted is None else counted.flatten(1)
        if self.resolution == "mask":
            row, column = (
                ((torch.arange(cells, device=logits.device) + 0.5) * (pixels / cells)).long()  # the pixel at a centre
                for cells, pixels in zip(size_hw, canvas_hw, strict=True)
            )
            at = (row[:, None] * canvas_hw[1] + column).flatten().expand(len(logits), -1)
            logits = logits.flatten(1)
        else:
            xy = torch.rand(len(logits), self.num_points, 2, device=logits.device, dtype=logits.dtype)
            grid = 2 * xy[:, None] - 1
            logits = F.grid_sample(logits[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[
                :, 0, 0
            ]  # as if it had been resized
            column, row = (
                (part * size).long().clamp(max=size - 1)
                for part, size in zip(xy.unbind(-1), canvas_hw[::-1], strict=True)
            )
            at = row * canvas_hw[1] + column
        return logits, wanted.flatten(1).gather(1, at), None if counted is None else counted.flatten(1).gather(1, at)


def _on_canvas(masks: tuple[Tensor, ...], canvas_hw: tuple[int, int]) -> Tensor:
    """(N, height, width) bool: all images' masks, padded at the bottom and on the right."""
    on_canvas = masks[0].new_zeros(sum(map(len, masks)), *canvas_hw)
    start = 0
    for image in masks:
        if len(image):
            on_canvas[start : start + len(image), : image.shape[1], : image.shape[2]] = image
        start += len(image)
    return on_canvas


def _on_image(targets: Targets, canvas_hw: tuple[int, int], pixel_mask: Tensor | None) -> Tensor | None:
    """(B, height, width) bool, False on padding: what `pixel_mask` or the end of an image's masks says is padding. None
    where there is none."""
    ends = np.array([mask.shape[1:] if len(mask) else canvas_hw for mask in targets.masks])  # (B, 2)
    if (ends == canvas_hw).all():
        return None if pixel_mask is None else pixel_mask.bool()
    ends = to_device(ends, targets.class_labels.device)
    row, column = (torch.arange(size, device=ends.device) for size in canvas_hw)
    on_image = (row[:, None] < ends[:, :1, None]) & (column < ends[:, 1:, None])
    return on_image if pixel_mask is None else on_image & pixel_mask.bool()


def _focal_and_dice(logits: Tensor, wanted: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """(M, P) logits, whether each pixel is on the object, and whether it counts -> two losses of (M,)."""
    on, off = wanted, ~wanted
    if counted is not None:
        on, off = on & counted, off & counted
    # both losses from the error of each pixel's probability: 1 - p on the object, p off it
    signed = torch.where(wanted, -logits, logits)
    error = signed.sigmoid()
    focal = error.square() * F.softplus(signed)  # softplus(signed) is the cross-entropy
    num_on, num_off = on.sum(1), off.sum(1)
    focal = (_ALPHA * (focal * on).sum(1) + (1 - _ALPHA) * (focal * off).sum(1)) / (num_on + num_off).clamp(min=1)
    found = num_on - (error * on).sum(1)  # sum of p on the object
    dice = 1 - (2 * found + 1) / (found + (error * off).sum(1) + num_on + 1)
    return focal, dice
