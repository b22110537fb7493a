"""Law 11: the eval forward pass goes through torch.compile and torch.export whole."""

import pytest
import torch

from tests.small_models import images, predictions, small_model, small_segmenter


def outputs_of(model, *inputs):
    with torch.no_grad():
        return predictions(model(*inputs))


@pytest.mark.parametrize(
    ("make", "padded", "implementation"),
    [(small_model, padded, name) for padded in (False, True) for name in ("sdpa", "eager")]
    + [(small_segmenter, True, "sdpa")],
)
def test_compile_takes_the_forward_pass_without_a_break(make, padded, implementation):
    model = make()
    model.set_attn_implementation(implementation)
    inputs = images((64, 96), (50, 64)) if padded else images((64, 96))[:1]
    expected = outputs_of(model, *inputs)
    torch._dynamo.reset()
    # the graph is captured whole and run; generating machine code for it is inductor's business, and takes a minute
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(outputs_of(compiled, *inputs), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "positions"), [(small_model, "sine"), (small_model, "learned"), (small_segmenter, "sine")]
)
def test_export_takes_any_batch_height_and_width(make, positions):
    model = make(position_embedding_type=positions, backbone="resnet18")
    # torch 2.11 takes a stride-2 max pooling for one parity of its input only; sides of whole cells have one
    step = 1 if torch.__version__ >= "2.12" else 32
    height, width = (step * torch.export.Dim(name, min=64 // step, max=1024 // step) for name in ("height", "width"))
    dims = {0: torch.export.Dim("batch", min=1, max=8), 2: height, 3: width}
    mask_dims = {0: dims[0], 1: dims[2], 2: dims[3]}
    with torch.no_grad():
        program = torch.export.export(
            model, images((64, 96), (50, 64)), dynamic_shapes=(dims, mask_dims), strict=False
        )  # fmt: skip
    odd_sides = ((70, 65), (130, 40), (64, 90)) if step == 1 else ((96, 64), (64, 64), (90, 32))
    for sizes in (((64, 96), (50, 64)), ((96, 160),), odd_sides):
        inputs = images(*sizes)
        exported = program.module()(*inputs)
        assert torch.allclose(predictions(exported), outputs_of(model, *inputs), atol=1e-4)


@pytest.mark.slow
def test_compile_to_machine_code_gives_the_same():
    model = small_model()
    inputs = images((64, 96), (50, 64))
    expected = outputs_of(model, *inputs)
    torch._dynamo.reset()
    assert torch.allclose(outputs_of(torch.compile(model, fullgraph=True), *inputs), expected, atol=1e-4)
