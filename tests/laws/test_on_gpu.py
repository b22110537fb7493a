"""The laws that only a real GPU can break; skipped where there is none."""

import pytest
import torch
from benchmarks.host_visits import counting_device

from hf_detr import (
    DetectionTransform,
    DetrForObjectDetection,
    DetrImageProcessor,
    DetrTrainer,
    DetrTrainingArguments,
    shape_scenes,
    tiny_checkpoint,
    transform_dataset,
)
from tests.small_models import MODELS, images, predictions, small_model, targets

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
TRAINING_ONLY = {"denoising_queries": 2, "encoder_auxiliary_loss": True, "iou_aware_classification": True}


@pytest.fixture(autouse=True)
def exact_convolutions():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(labels: list[dict]) -> list[dict]:
    return [{name: value.cuda() for name, value in label.items()} for label in labels]


@MODELS
@pytest.mark.parametrize("folded", [False, True], ids=["norms", "folded"])
def test_a_gpu_gives_the_predictions_of_the_processor(make, folded):
    model = make()
    pixels, mask = images((64, 96), (96, 64))
    with torch.no_grad():
        expected = predictions(model(pixels, mask))
        model = model.cuda()
        if folded:
            model.fold_norms()
        found = predictions(model(pixels.cuda(), mask.cuda()))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@MODELS
def test_a_gpu_gives_the_loss_of_the_processor(make):
    model = make(**NO_DROPOUT).train()
    pixels, mask = images((64, 96), (96, 64))
    labels = targets(3, 0, sizes_hw=[(64, 96), (96, 64)])
    expected = model(pixels, mask, labels=labels).loss
    found = model.cuda()(pixels.cuda(), mask.cuda(), labels=on_gpu(labels)).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_stay_float32_under_autocast_on_a_gpu(dtype):
    model = small_model(**NO_DROPOUT, **TRAINING_ONLY).cuda().train()
    pixels, mask = images((64, 96), (96, 64))
    with torch.autocast("cuda", dtype):
        output = model(pixels.cuda(), mask.cuda(), labels=on_gpu(targets(3, 2)))
    assert {value.dtype for value in output.loss_dict.values()} == {torch.float32}
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_training_step_waits_for_a_real_gpu_at_most_twice():
    with counting_device(torch.device("cuda")) as (device, count):
        model = small_model(**TRAINING_ONLY).to(device).train()
        pixels, mask = (tensor.to(device) for tensor in images((64, 64), (48, 64)))
        labels = on_gpu(targets(3, 2))

        def step():
            model(pixels, mask, labels=labels).loss.backward()

        step()  # libraries are loaded by a first call
        counted = count(step)
    assert counted["host synchronisations"] <= 2, counted
    assert counted["kernel launches"] > 100


def test_compiled_on_a_gpu_the_predictions_are_the_same():
    model = small_model().cuda()
    pixels, mask = (tensor.cuda() for tensor in images((64, 96), (96, 64)))
    with torch.no_grad():
        expected = predictions(model(pixels, mask))
        found = predictions(torch.compile(model, fullgraph=True)(pixels, mask))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_trainer_learns_on_a_gpu(tmp_path, precision):
    data = shape_scenes(64, 96)
    processor = DetrImageProcessor.from_pretrained(tiny_checkpoint())
    model = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label={i: str(i) for i in range(5)})
    arguments = DetrTrainingArguments(
        output_dir=str(tmp_path), recipe="fast", max_steps=60, per_device_train_batch_size=16, learning_rate=1e-3,
        report_to=[], save_strategy="no", bf16=precision == "bf16", fp16=precision == "fp16", logging_steps=10,
    )  # fmt: skip
    train = transform_dataset(data, DetectionTransform(processor, augment=lambda row: row))
    test = transform_dataset(data, DetectionTransform(processor))
    trainer = DetrTrainer(model, arguments, train_dataset=train, eval_dataset=test, processing_class=processor)
    before = trainer.evaluate()["eval_map"]
    trainer.train()
    assert next(trainer.model.parameters()).is_cuda
    assert trainer.evaluate()["eval_map"] > before + 0.05
    assert torch.isfinite(torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row])).all()
