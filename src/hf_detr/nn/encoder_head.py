"""What each cell of the encoded feature map says of the object it lies on. Only training has it."""

import torch
from torch import Tensor, nn

from .heads import BoxHead

# B images, HW cells, D channels, C classes


class EncoderHead(nn.Module):
    """A class and a box for every cell, from which the encoder and the backbone learn without waiting for the decoder.

    Its parameters belong to the training's checkpoint alone.
    """

    def __init__(self, d_model: int, num_labels: int):
        super().__init__()
        self.classifier = nn.Linear(d_model, num_labels + 1)  # and "no object"
        self.box = BoxHead(d_model)

    def forward(self, memory: Tensor, centres_xy: Tensor) -> tuple[Tensor, Tensor]:
        """(B, HW, D) and the cells' centres (B or 1, HW, 2) in [0, 1] of the visible image -> logits (B, HW, C + 1) and
        boxes cxcywh (B, HW, 4) in [0, 1], whose centres are predicted from the cell's."""
        memory = memory.to(self.classifier.weight.dtype)
        box = self.box(memory)
        from_cell = box[..., :2] + torch.logit(centres_xy, eps=1e-3)
        return self.classifier(memory), torch.cat((from_cell, box[..., 2:]), dim=-1).sigmoid()

    @torch.no_grad()
    def set_classes(self, num_labels: int, shared: dict[int, int]) -> None:
        """Makes the classifier for other classes; `shared`, new id -> old id, says which stay, as "no object" does."""
        old = self.classifier
        new = nn.Linear(old.in_features, num_labels + 1, device=old.weight.device, dtype=old.weight.dtype)
        for new_index, old_index in {**shared, num_labels: old.out_features - 1}.items():
            new.weight[new_index], new.bias[new_index] = old.weight[old_index], old.bias[old_index]
        self.classifier = new
