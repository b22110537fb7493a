"""What the page on fine-tuning says of FSDP: a model divided among processes trains as a whole one."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_detr.training import parameter_groups
from tests.processes import in_two_processes
from tests.small_models import images, small_model, targets

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _train(model, pixel_values, labels, boxes: int, num_images: int, share: int) -> tuple[list, dict]:
    """Losses of three steps, and the weights after them."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1e-3))
    losses = []
    for _ in range(3):
        outputs = model(
            pixel_values=pixel_values, labels=labels, num_items_in_batch=boxes, num_images_in_batch=num_images
        )
        (share * outputs.loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.detach())
    return losses, {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _process(rank: int, each_layer: bool, folder: Path) -> None:
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    dist.init_process_group("gloo")
    model = small_model(**NO_DROPOUT).train()
    if each_layer:
        for module in [one for one in model.modules() if type(one).__name__ in model._no_split_modules]:
            fully_shard(module)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    (pixel_values, _), labels = images(*[(64, 64)] * 4), targets(2, 0, 1, 3)
    own = slice(2 * rank, 2 * rank + 2)
    losses, weights = _train(model, pixel_values[own], labels[own], boxes=6, num_images=4, share=2)
    shares = torch.stack(losses)
    dist.all_reduce(shares)
    if rank == 0:
        torch.save({"losses": shares, "weights": weights}, folder / "sharded.pt")


@pytest.mark.slow
@pytest.mark.parametrize("each_layer", [False, True])
def test_weights_divided_among_two_processes_train_as_whole_ones(each_layer, tmp_path):
    (pixel_values, _), labels = images(*[(64, 64)] * 4), targets(2, 0, 1, 3)
    model = small_model(**NO_DROPOUT).train()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen  # beside trained ones in one module
    losses, weights = _train(model, pixel_values, labels, boxes=6, num_images=4, share=1)
    in_two_processes(_process, each_layer, tmp_path)
    sharded = torch.load(tmp_path / "sharded.pt")
    torch.testing.assert_close(sharded["losses"], torch.stack(losses), rtol=1e-5, atol=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(sharded["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)
