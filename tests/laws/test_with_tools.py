"""Law 14: logits are those of the plain model and hooks fire, whatever tools do with its modules."""

import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import accelerate
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hf_detr.nn.frozen_norm import FrozenBatchNorm2d
from tests.small_models import MODELS, images, small_model, small_segmenter, targets

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
EXTRA = {"denoising_queries": 2, "query_groups": 2, "encoder_auxiliary_loss": True, "iou_aware_classification": True}
SIZES = ((64, 64), (96, 64))
PIXELS, MASK = images(*SIZES)
LABELS = targets(2, 3, sizes_hw=SIZES)


def logits(model: nn.Module, gradients: bool = False) -> torch.Tensor:
    """And the masks' logits where there are any, (B, numbers)."""
    with torch.set_grad_enabled(gradients):
        outputs = model(pixel_values=PIXELS, pixel_mask=MASK)
    masks = outputs.pred_masks.flatten(1) if "pred_masks" in outputs else outputs.logits[:, :0, 0]
    return torch.cat((outputs.logits.flatten(1), masks), dim=1).detach()


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@MODELS
@pytest.mark.parametrize("mode", ["no_grad", "gradients", "train"])
def test_hooks_of_every_module_fire_at_each_call_and_change_nothing(make, mode):
    model = make(**NO_DROPOUT).train(mode == "train")
    plain = logits(model, mode != "no_grad")
    fired, called = Counter(), Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.update([name]))
        module.forward = _counting(module.forward, name, called)
    assert_near(logits(model, mode != "no_grad"), plain)
    assert fired == called
    # containers are iterated over, and the backbone's holder only names it
    containers = (nn.ModuleList, type(model.base_model.backbone))
    for name, module in model.named_modules():
        if not isinstance(module, containers):
            assert fired[name] == 1, name


def _counting(forward, name: str, called: Counter):
    def counted(*args, **kwargs):
        called.update([name])
        return forward(*args, **kwargs)

    return counted


@pytest.mark.parametrize("gradients", [False, True])
def test_what_a_hook_has_seen_stays_as_it_was(gradients):
    """Outputs of transformer and heads; timm's own ReLU overwrites the norm before it, as in timm."""
    model, seen = small_model(), {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding)):
            module.register_forward_hook(
                lambda _, __, output, name=name: seen.setdefault(name, []).append((output, output.detach().clone()))
            )
    logits(model, gradients)
    assert len(seen) > 40
    for name, outputs in seen.items():
        assert all(torch.equal(output, before) for output, before in outputs), name
    assert all((output < 0).any() for name in seen if name.endswith("fc1") for output, _ in seen[name])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_hook_can_change_a_modules_output(gradients):
    model = small_model()
    plain = logits(model, gradients)
    for name in ("model.decoder.layers.0.self_attn.v_proj", "model.encoder.layers.1.activation", "model.backbone"):
        module = model.get_submodule(name if name != "model.backbone" else "model.backbone.conv_encoder.model.conv1.0")
        handle = module.register_forward_hook(lambda _, __, output: output + 1)
        assert (logits(model, gradients) - plain).abs().max() > 1e-3, name
        handle.remove()
        assert_near(logits(model, gradients), plain)


@pytest.mark.parametrize(("make", "folded"), [(small_model, False), (small_model, True), (small_segmenter, False)])
def test_lora_on_every_linear_layer_convolution_and_embedding(make, folded):
    peft = pytest.importorskip("peft")
    model = make(**NO_DROPOUT)
    plain = logits(model)
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_embedding_B" in name:
            nn.init.zeros_(parameter)
    if folded:
        assert model.fold_norms() == 0  # every convolution has an adapter
    assert_near(logits(adapted), plain)

    adapted.train()(pixel_values=PIXELS, pixel_mask=MASK, labels=LABELS).loss.backward()
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * len(names)
    # at its start one half of each pair is zero, behind which the other half has a gradient of zero
    assert all(p.grad is not None for p in adapters.values())
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trained = logits(adapted.eval())
    assert (trained - plain).abs().max() > 1e-2
    assert_near(logits(adapted, gradients=True), trained)
    assert_near(logits(adapted.merge_and_unload()), trained)


def test_adapters_on_a_folded_backbone_are_not_lost_in_silence():
    model = small_model()
    model.fold_norms()
    name = "model.backbone.conv_encoder.model.layer4.0.conv2"
    model.set_submodule(name, _Wrapper(model.get_submodule(name)))
    with pytest.raises(RuntimeError, match=r"layer4\.0\.conv2"):
        model.unfold_norms()
    assert isinstance(model.get_submodule(name), _Wrapper)


class _Wrapper(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


@pytest.mark.parametrize("mode", ["no_grad", "gradients", "folded"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [(small_model, kind) for kind in (nn.Conv2d, nn.Linear, FrozenBatchNorm2d, nn.ReLU)]
    + [(small_segmenter, kind) for kind in (nn.Conv2d, nn.GroupNorm)],
)
def test_a_wrapper_in_place_of_a_module(make, kind, mode):
    model = make()
    plain = logits(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            model.set_submodule(name, _Wrapper(module))
    if mode == "folded":
        model.fold_norms()
    assert_near(logits(model, mode == "gradients"), plain)


@pytest.mark.parametrize("mode", ["no_grad", "gradients", "folded"])
def test_a_norm_replaced_by_identity_is_not_applied(mode):
    model = small_model()
    with_norm = logits(model)
    name = "model.backbone.conv_encoder.model.layer4.0.bn2"
    neutral = copy.deepcopy(model)
    norm = neutral.get_submodule(name)
    for buffer, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1 - norm.eps)):
        getattr(norm, buffer).fill_(value)
    model.set_submodule(name, nn.Identity())
    if mode == "folded":
        model.fold_norms()
    without = logits(model, mode == "gradients")
    assert_near(without, logits(neutral))
    assert (without - with_norm).abs().max() > 1e-3


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("make", "positions", "part"),
    [(small_model, positions, part) for positions in ("sine", "learned") for part in ("model", "backbone")]
    + [(small_segmenter, "sine", "model")],
)
def test_offloaded_weights(make, offload, positions, part, tmp_path):
    model = make(position_embedding_type=positions)
    plain = logits(model)
    with torch.no_grad():
        loss = model(PIXELS, MASK, labels=LABELS).loss
    offloaded = model if part == "model" else model.base_model.backbone
    if offload == "cpu":
        accelerate.cpu_offload(offloaded, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(offloaded, str(tmp_path), execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert_near(logits(model), plain)
    with torch.no_grad():
        assert_near(model(PIXELS, MASK, labels=LABELS).loss, loss)
    assert model.fold_norms() == 0
    assert_near(logits(model), plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@MODELS
def test_dynamically_quantized_linear_layers(make):
    model = make()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    plain = logits(model)
    difference, of_boxes = (logits(quantized) - plain).abs(), 9 * 6
    assert difference[:, :of_boxes].max() < 0.1 * plain[:, :of_boxes].std()
    assert difference.mean() < 0.1 * plain.std()
    with torch.no_grad():
        assert quantized(PIXELS, MASK, labels=LABELS).loss.isfinite()


@pytest.mark.parametrize("setting", ["meta", torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extra", [{}, EXTRA], ids=["plain", "training-only parts"])
@MODELS
def test_another_default_device_or_dtype(make, setting, extra):
    noiseless = {"denoising_box_noise": 0.0, "denoising_label_noise": 0.0}
    model = make(**NO_DROPOUT, **extra, **(noiseless if extra else {})).train()

    def run() -> list[torch.Tensor]:
        model.train().zero_grad()
        outputs = model(PIXELS, MASK, labels=LABELS)
        outputs.loss.backward()
        return [outputs.logits.detach(), outputs.loss.detach(), model.base_model.input_projection.weight.grad.clone()]

    expected = [logits(model.eval()), *run()]
    if setting == "meta":
        with torch.device("meta"):
            actual = [logits(model.eval()), *run()]
    else:
        torch.set_default_dtype(setting)
        try:
            actual = [logits(model.eval()), *run()]
        finally:
            torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # dtype and device as well


@pytest.mark.parametrize(("make", "training"), [(small_model, True), (small_model, False), (small_segmenter, True)])
def test_forward_mode_gradients_are_those_of_finite_differences(make, training):
    model = make(**NO_DROPOUT).double().train(training)
    labels = targets(2, 3, sizes_hw=((64, 64), (64, 64)))
    pixels = images((64, 64), (64, 64))[0].double()  # padding would make ties in the pooling, which have no gradient
    direction, step = torch.randn_like(pixels), 1e-7

    def of_logits(x):
        return model(x).logits

    def of_loss(x):
        return model(x, labels=labels).loss

    def difference(function):
        with torch.no_grad():
            return (function(pixels + step * direction) - function(pixels - step * direction)) / (2 * step)

    _, tangent = torch.func.jvp(of_logits, (pixels,), (direction,))
    torch.testing.assert_close(tangent.detach(), difference(of_logits), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(of_loss(forward_ad.make_dual(pixels, direction))).tangent
        torch.testing.assert_close(tangent.detach(), difference(of_loss), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folded", [False, True])
@MODELS
def test_deepcopy_is_a_model_of_its_own(make, folded):
    model = make()
    plain = logits(model)
    if folded:
        model.fold_norms()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    twin.unfold_norms()
    assert_near(logits(twin), plain)


@pytest.mark.parametrize(("make", "folded"), [(small_model, False), (small_model, True), (small_segmenter, False)])
def test_two_threads_at_once(make, folded):
    model = make()
    sizes = [(64, 96), (96, 64)]
    inputs = [images(size, seed=index)[0] for index, size in enumerate(sizes)]
    if folded:
        model.fold_norms()
    with torch.no_grad():
        expected = [model(x).logits for x in inputs]

    def work(index: int) -> list[torch.Tensor]:
        with torch.set_grad_enabled(index == 1):  # a thread's own
            return [model(inputs[index]).logits.detach() for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        for results, wanted in zip(pool.map(work, (0, 1)), expected, strict=True):
            for result in results:
                assert_near(result, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
@MODELS
def test_replicas_of_data_parallelism_read_their_own_tensors(make, dtype, training):
    """What `torch.nn.parallel.replicate` does, on one device: replicas' tensors are no parameters."""
    model = make(**NO_DROPOUT, **EXTRA).to(dtype).train(training)
    pixels = PIXELS.to(dtype)
    plain = model(pixels, MASK, labels=LABELS)
    replica = _replica(model)
    assert not list(replica.parameters())
    original = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    outputs = replica(pixels, MASK, labels=LABELS)
    assert_near(outputs.logits, plain.logits)
    assert_near(outputs.loss_dict["loss_ce"], plain.loss_dict["loss_ce"])
    model.load_state_dict(original)


def _replica(model: nn.Module) -> nn.Module:
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            if child is None:
                replica._modules[name] = None
            else:
                setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone())
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None if buffer is None else buffer.clone()
    return replicas[model]
