"""What of a model goes into an exported file: images in, tensors of detections out, and nothing else."""

import copy

import torch
from torch import Tensor, nn

from ..boxes import cxcywh_to_xyxy
from ..modeling_detr import DetrForObjectDetection
from ..modeling_detr_segmentation import DetrForSegmentation

# B images, C channels, Q queries, K classes; (h, w) of masks, a quarter of the canvas


class DetectorGraph(nn.Module):
    """`pixel_values` (B, C, H, W) float32 and `pixel_mask` (B, H, W) int64, 1 on the image -> `logits` (B, Q, K + 1),
    `pred_boxes` (B, Q, 4), cxcywh of the visible image, and of a model with masks `pred_masks` (B, Q, h, w), logits.

    With `post_process` a third input, `target_sizes` (B, 2) float32, the images' heights and widths in pixels, and
    `scores` (B, Q), `labels` (B, Q) int64 and `boxes` (B, Q, 4), xyxy in pixels, in place of the former two: every
    query's best class, for the caller to compare with a threshold. A query that is not finite has the score NaN.

    Raises ValueError for weights that are not finite.
    """

    def __init__(self, model: DetrForObjectDetection | DetrForSegmentation, post_process: bool = False):
        super().__init__()
        # a copy, since norms are folded into it; the caller's model stays as it is
        self.detector = copy.deepcopy(model).float().cpu().eval()
        self.detector.fold_norms()
        broken = [name for name, tensor in self.detector.state_dict().items() if not torch.isfinite(tensor).all()]
        if broken:
            raise ValueError(
                f"{broken[0]}: NaN or infinite weights ({len(broken)} tensors); export a sound checkpoint."
            )
        self.config = self.detector.config
        self.config.chunk_size_backbone = (
            0  # a loop of unknown length; that of masks has a fixed one, and spares memory
        )
        self.post_process = post_process
        self.has_masks = isinstance(model, DetrForSegmentation)

    @property
    def weight_bytes(self) -> int:
        """Of all weights in float32."""
        return sum(4 * tensor.numel() for tensor in self.detector.parameters())

    def inputs_of(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """All inputs for images (B, C, H, W) without padding, which are taken at this size."""
        count, _, height, width = pixel_values.shape
        inputs = {"pixel_values": pixel_values, "pixel_mask": torch.ones(count, height, width, dtype=torch.int64)}
        if self.post_process:
            inputs["target_sizes"] = torch.tensor([(height, width)] * count, dtype=torch.float32)
        return inputs

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor, target_sizes: Tensor | None = None
    ) -> dict[str, Tensor]:
        # An image that is not finite has no finite logit. Said to the runtime, since OpenVINO's ReLU makes 0 of NaN,
        # and before the first convolution, since whatever reads the same tensor as an int8 layer gets it in int8.
        finite = torch.isfinite(pixel_values.sum(dim=(1, 2, 3)))[:, None, None]
        pixel_values = torch.where(finite[..., None], pixel_values, 0.0)
        outputs = self.detector(pixel_values, pixel_mask=pixel_mask, return_dict=True)
        logits, boxes = torch.where(finite, outputs.logits, torch.nan), outputs.pred_boxes
        masks = {"pred_masks": torch.where(finite[..., None], outputs.pred_masks, torch.nan)} if self.has_masks else {}
        if not self.post_process:
            return {"logits": logits, "pred_boxes": boxes, **masks}
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        valid = torch.isfinite(logits.sum(-1) + boxes.sum(-1))
        size_wh = target_sizes.flip(-1)
        return {
            "scores": torch.where(valid, scores, torch.nan),
            "labels": labels,
            "boxes": cxcywh_to_xyxy(boxes) * torch.cat((size_wh, size_wh), dim=-1)[:, None],
            **masks,
        }
