"""Outputs of a model with masks, made up: of noise, or as those of a trained model, which is sure of a few objects."""

from types import SimpleNamespace

import torch


def noise(seed, num_images=2, num_queries=30, num_classes=7, grid_hw=(25, 33)):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        logits=4 * torch.randn(num_images, num_queries, num_classes + 1, generator=generator),
        pred_masks=3 * torch.randn(num_images, num_queries, *grid_hw, generator=generator),
        pred_boxes=torch.rand(num_images, num_queries, 4, generator=generator),
    )


def scenes(seed, num_images=2, num_queries=30, num_classes=7, grid_hw=(25, 33), num_objects=6):
    """Ellipses over two stripes of stuff, the last classes; some objects are found twice; the rest is "no object"."""
    generator = torch.Generator().manual_seed(seed)
    height, width = grid_hw
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    logits = torch.randn(num_images, num_queries, num_classes + 1, generator=generator)
    logits[..., -1] += 6
    masks = torch.randn(num_images, num_queries, height, width, generator=generator) - 6
    for i in range(num_images):
        places = torch.randperm(num_queries, generator=generator)[: num_objects + 4].tolist()
        horizon = height * (0.3 + 0.4 * torch.rand(1, generator=generator))
        for n, query in enumerate(places):
            centre = torch.rand(2, generator=generator) * torch.tensor([height, width])
            radii = (0.05 + 0.2 * torch.rand(2, generator=generator)) * torch.tensor([height, width])
            distance = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2
            label = int(torch.randint(num_classes - 2, (1,), generator=generator))
            shape = 12 - 12 * distance
            if n < 4:  # two queries for each stripe
                label = num_classes - 1 - n % 2
                shape = ((horizon - y) * (1 if n % 2 else -1)).clamp(-8, 3)
            elif n == 5:
                shape = masks[i, places[4]] + 0.5
            masks[i, query] = shape + 0.3 * torch.randn(height, width, generator=generator)
            logits[i, query, label] += 8 + 4 * torch.rand(1, generator=generator).item()
    boxes = torch.rand(num_images, num_queries, 4, generator=generator)
    return SimpleNamespace(logits=logits, pred_masks=masks.clamp(-40, 40), pred_boxes=boxes)
