"""Dropout: chances, scale, gradient, repeatable numbers."""

import pytest
import torch

from hf_detr.nn.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_element_is_dropped_with_the_chance_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(40, 5_003, dtype=dtype)  # no multiple of the four that share a draw
    out = dropout(x, p, training=True)
    assert out.dtype == dtype
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5e-3)
    for lane in range(4):  # each of the elements that share a draw
        assert kept.flatten()[lane::4].float().mean().item() == pytest.approx(1 - p, abs=1e-2)
    torch.testing.assert_close(out[kept].float(), torch.full_like(out[kept], 1 / (1 - p)).float(), rtol=5e-3, atol=0)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5, training=True) != 0).float()
    for distance in (1, 2, 3, 4, 5):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=4e-3), distance


def test_the_gradient_is_that_of_what_was_kept():
    x = torch.randn(7, 9, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), out.detach())


def test_one_seed_one_mask_and_nothing_happens_outside_training():
    x = torch.randn(1_000)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(x, 0.2, training=True))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert dropout(x, 0.2, training=False) is x
    assert dropout(x, 0.0, training=True) is x
