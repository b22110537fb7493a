"""Models small enough for a test, and inputs for them."""

import warnings

import pytest
import torch

from hf_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 9,
    "num_labels": 5,
}


def small_config(**changes) -> DetrConfig:
    backbone = {} if "backbone_config" in changes else {"backbone": "test_resnet"}
    return DetrConfig(**{**backbone, **SIZES, **changes})


def small_model(model_class=DetrForObjectDetection, seed: int = 0, **changes):
    """A fresh model in eval mode whose norms have statistics and whose heads say different things of each query."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone starts from random weights")
        model = model_class(small_config(**changes))
    return with_statistics(model).eval()


def small_segmenter(seed: int = 0, **changes) -> DetrForSegmentation:
    """As `small_model`, with a mask head, whose norms want eight heads."""
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    return small_model(DetrForSegmentation, seed, **heads, **changes)


MODELS = pytest.mark.parametrize("make", [small_model, small_segmenter], ids=["boxes", "masks"])


def predictions(outputs) -> torch.Tensor:
    """Logits, boxes and, where there are any, masks, (B, numbers)."""
    parts = [outputs.logits, outputs.pred_boxes, getattr(outputs, "pred_masks", None)]
    return torch.cat([part.flatten(1) for part in parts if part is not None], dim=1)


@torch.no_grad()
def with_statistics(model: torch.nn.Module, seed: int = 1, normal=None) -> torch.nn.Module:
    """Random numbers as after training: norms at 0 and 1, or queries that all say the same, would prove nothing.
    `normal` draws them by shape, instead of torch."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = normal(tensor.shape) if normal else torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith("running_mean"):
            tensor.copy_(0.1 * noise)
        elif name.endswith("norm.weight") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(1 + 0.1 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.1 * noise)
        elif "embedding" in name and tensor.ndim == 2:
            tensor.copy_(noise)
        elif tensor.ndim >= 2:
            # as in the golden cases: attention that prefers something, and queries that disagree
            gain = 1.0
            if "backbone" in name:
                gain = 2**0.5
            elif "encoder.layers" in name:
                gain = 0.5
            elif "attn" in name or "bbox_attention" in name:
                gain = 2.0
            tensor.copy_(noise * gain / tensor[0].numel() ** 0.5)
            # attention maps are small numbers beside the backbone's, and all that a mask knows of its query
            if name.endswith(("mask_head.lay1.weight", "mask_head.conv1.conv.weight")):
                tensor[:, :-8] *= 0.03
                tensor[:, -8:] *= 20
            elif "adapter" in name:
                tensor *= 0.03
    return model


def images(*sizes_hw: tuple[int, int], channels: int = 3, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images at the top left of a canvas -> pixel_values (B, C, H, W) and pixel_mask (B, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)
    pixel_values = torch.zeros(len(sizes_hw), channels, height, width)
    pixel_mask = torch.zeros(len(sizes_hw), height, width, dtype=torch.int64)
    for index, (h, w) in enumerate(sizes_hw):
        pixel_values[index, :, :h, :w] = torch.randn(channels, h, w, generator=generator)
        pixel_mask[index, :h, :w] = 1
    return pixel_values, pixel_mask


def targets(*counts: int, num_labels: int = 5, seed: int = 3, sizes_hw=None) -> list[dict[str, torch.Tensor]]:
    """Random labels, `counts` objects per image; with the images' `sizes_hw` also masks, the ellipses in the boxes."""
    generator = torch.Generator().manual_seed(seed)
    labels = [
        {
            "class_labels": torch.randint(num_labels, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        for count in counts
    ]
    for label, (height, width) in zip(labels, sizes_hw or (), strict=bool(sizes_hw)):
        x, y, w, h = label["boxes"].T[:, :, None, None]
        rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        distance = ((columns - x) / w).square() + ((rows[:, None] - y) / h).square()  # (T, height, width)
        label["masks"] = (distance < 0.25).to(torch.uint8)
    return labels
