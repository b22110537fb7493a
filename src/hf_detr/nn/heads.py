"""From a query's state to its box."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class BoxHead(nn.Module):
    """A perceptron of three layers (paper, 3.2): (..., D) -> (..., 4), boxes cxcywh before the sigmoid."""

    def __init__(self, d_model: int, num_layers: int = 3):
        super().__init__()
        widths = [d_model] * num_layers + [4]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            states = F.relu(layer(states))
        return self.layers[-1](states)
