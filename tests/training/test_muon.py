"""MuonAdamW: AdamW but for its matrices, whose steps are orthogonal; in a training it resumes exactly."""

import copy

import pytest
import torch
from torch import nn

from hf_detr.training import MuonAdamW, parameter_groups
from hf_detr.training.muon import orthogonalise

from ..small_models import small_model
from .conftest import model, scenes


def trained_for(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((16, 24), (16, 24), (32, 8), (5,), (3, 4, 2))]


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 64), (2, 64, 16)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalise(matrices)
    assert (made.shape, made.dtype) == (matrices.shape, matrices.dtype)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    between = u.mT @ made @ vh.mT  # diagonal, where the singular vectors are the same
    values = between.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.4  # of a square matrix, whose least singular value is near 0
    assert values.max() < 1.3
    torch.testing.assert_close(between, torch.diag_embed(values), rtol=0, atol=0.06)  # it is computed in bfloat16


def test_zeros_stay_zeros():
    assert orthogonalise(torch.zeros(1, 4, 4)).eq(0).all()


def test_without_matrices_it_is_adamw():
    own, others = parameters(), parameters()
    settings = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.99)}
    ours = trained_for(MuonAdamW(own, **settings), own)
    torchs = trained_for(torch.optim.AdamW(others, **settings, fused=True), others)
    assert all(torch.equal(one, other) for one, other in zip(ours, torchs, strict=True))


def test_matrices_move_as_with_torchs_muon():
    own, others = parameters()[:3], parameters()[:3]
    ours = trained_for(MuonAdamW([{"params": own, "orthogonal": True}], lr=1e-2, weight_decay=0.1), own)
    optimizer = torch.optim.Muon(others, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for one, other in zip(ours, trained_for(optimizer, others), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # steps of 1e-2


def test_its_state_goes_through_a_file(tmp_path):
    own = parameters()
    optimizer = MuonAdamW([{"params": own[:3], "orthogonal": True}, {"params": own[3:]}])
    trained_for(optimizer, own)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in own]
    resumed = MuonAdamW([{"params": copies[:3], "orthogonal": True}, {"params": copies[3:]}])
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for one, other in zip(trained_for(optimizer, own), trained_for(resumed, copies), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_gradient_stays():
    own = parameters()
    before = copy.deepcopy(own)
    optimizer = MuonAdamW([{"params": own[:3], "orthogonal": True}, {"params": own[3:]}])
    own[0].grad = torch.ones_like(own[0])
    optimizer.step()
    assert [torch.equal(one, other) for one, other in zip(own, before, strict=True)] == [False, True, True, True, True]


def test_a_vector_in_an_orthogonal_group_is_an_error():
    with pytest.raises(ValueError, match=r"shape \(5,\) is no matrix"):
        MuonAdamW([{"params": parameters(), "orthogonal": True}])


def test_matrices_are_those_of_the_transformers_linear_layers():
    detector = small_model()
    groups = {group["name"]: group for group in parameter_groups(detector, muon=True)}
    assert list(groups) == ["others", "backbone", "matrices"]
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    matrices = {names[id(parameter)] for parameter in groups["matrices"]["params"]}
    linears = {
        f"{name}.weight"
        for part in ("encoder", "decoder")
        for name, module in detector.model.named_modules(prefix="model")
        if isinstance(module, nn.Linear) and f".{part}.layers." in name
    }
    assert matrices == linears
    assert groups["matrices"]["orthogonal"]
    counted = [parameter for group in groups.values() for parameter in group["params"]]
    assert len(counted) == len(set(counted)) == sum(p.requires_grad for p in detector.parameters())


def test_it_is_the_optimizer_of_fast_unless_another_is_chosen(make_trainer):
    def optimizer_of(**settings):
        return make_trainer(model(), rows=scenes(2), **settings).create_optimizer()

    assert isinstance(optimizer_of(recipe="fast"), MuonAdamW)
    assert isinstance(optimizer_of(muon=True), MuonAdamW)
    for settings in ({"recipe": "fast", "muon": False}, {"recipe": "paper"}, {"recipe": "fast", "optim": "sgd"}):
        assert not isinstance(optimizer_of(**settings), MuonAdamW)
    with pytest.raises(ValueError, match=r"muon=True goes with optim=.*not 'sgd'"):
        make_trainer(model(), rows=scenes(2), muon=True, optim="sgd")
