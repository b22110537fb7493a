"""A trained detector of any architecture teaches, and labels images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

from hf_detr import DetrForObjectDetection, DetrImageProcessor
from hf_detr.data.collator import DetectionCollator
from hf_detr.data.schema import id2label
from hf_detr.training.teacher import Lessons, Teacher
from hf_detr.training.unlabelled import label_images

from ..small_models import small_config, with_statistics
from .conftest import PROCESSOR, model, scenes, training_log

NAMES = id2label(scenes(1))


def save(folder: Path, **changes) -> Path:
    """A small detector with weights of its own, and its processor."""
    with_statistics(model(**changes), seed=5).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detr(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("detr"))


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory) -> Path:
    """Sigmoids in place of a softmax, queries chosen from the image, images squeezed into a square; its classes are
    two of the student's, in another order and in capitals, and one more."""
    folder = tmp_path_factory.mktemp("rt_detr")
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    widths = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[8, 16, 16], decoder_in_channels=[32, 32, 32],
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_layers=1, num_queries=7, num_denoising=0,
        id2label={0: NAMES[3].upper(), 1: "zebra", 2: NAMES[1].upper()}, **widths,
    )  # fmt: skip
    RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def arrays(*sizes_hw: tuple[int, int]) -> list[np.ndarray]:
    return [np.random.default_rng(7).integers(0, 256, (*size_hw, 3), dtype=np.uint8) for size_hw in sizes_hw]


@pytest.mark.parametrize("pairing", ["by query", "matched"])
def test_a_teacher_sees_in_a_students_batch_what_it_sees_in_the_images(detr, pairing):
    images = arrays((64, 64), (64, 90))
    normalised = {"image_mean": [0.4, 0.5, 0.6], "image_std": 0.3, "do_resize": False, "do_pad": False}
    processor = DetrImageProcessor(**normalised)
    items = [
        {
            "pixel_values": processor(one, return_tensors="pt")["pixel_values"][0],
            "labels": {"image_id": torch.tensor(3)},
        }
        for one in images
    ]
    batch = DetectionCollator()(items)
    assert "pixel_mask" in batch
    lessons = Lessons(str(detr), small_config(id2label=NAMES), processor, pairing=pairing)
    labels = lessons(batch)["labels"]

    teacher = DetrForObjectDetection.from_pretrained(detr).eval()
    for image, label in zip(images, labels, strict=True):
        with torch.no_grad():
            outputs = teacher(PROCESSOR(image, do_pad=False, return_tensors="pt")["pixel_values"])
        probabilities = outputs.logits[0].softmax(-1)
        sure = (1 - probabilities[:, -1] > 0.1).nonzero().flatten()
        torch.testing.assert_close(label["teacher_probabilities"], probabilities[sure], rtol=0, atol=1e-4)
        torch.testing.assert_close(label["teacher_boxes"], outputs.pred_boxes[0, sure], rtol=0, atol=1e-4)
        assert (label["teacher_queries"].tolist() if pairing == "by query" else sure.tolist()) == sure.tolist()
        assert ("teacher_queries" in label) == (pairing == "by query")


def test_classes_are_found_by_name_and_what_is_no_class_of_the_student_is_no_object(rt_detr):
    teacher = Teacher(str(rt_detr), NAMES)
    assert teacher.taught == [NAMES[1], NAMES[3]]
    [image] = arrays((64, 64))
    seen = teacher.look([image], ["one"])
    logits = (
        RTDetrForObjectDetection.from_pretrained(rt_detr)
        .eval()(RTDetrImageProcessor.from_pretrained(rt_detr)(image, return_tensors="pt")["pixel_values"])
        .logits
    )
    scores = logits.sigmoid()
    share = scores.amax(-1, keepdim=True) / scores.sum(-1, keepdim=True)
    torch.testing.assert_close(seen.probabilities[..., [3, 1]], (scores * share)[..., [0, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.probabilities.sum(-1), torch.ones(1, 7), rtol=0, atol=1e-5)
    assert not seen.probabilities[..., [0, 2, 4]].any()


@pytest.mark.parametrize("architecture", ["detr", "rt_detr"])
def test_a_student_learns_and_what_it_leaves_is_a_plain_detr(make_trainer, request, architecture):
    student = model(encoder_auxiliary_loss=True)
    folder = request.getfixturevalue(architecture)
    trainer = make_trainer(student, teacher=str(folder), max_steps=2, augment="paper", save_strategy="steps")
    trainer.train()
    for entry in training_log(trainer):
        assert np.isfinite(entry["loss"])
        assert entry["loss_teacher"] >= 0
    checkpoint = Path(trainer.args.output_dir, "checkpoint-2")
    plain = model()
    assert load_file(checkpoint / "model.safetensors").keys() == plain.state_dict().keys()
    assert "teacher" not in json.loads((checkpoint / "config.json").read_text())
    assert "teacher" not in repr(trainer.model).lower()


def test_accumulated_batches_learn_of_a_teacher_what_one_batch_does(make_trainer, detr):
    logs = []
    for size, accumulate in ((4, 1), (1, 4)):
        trainer = make_trainer(
            model(encoder_auxiliary_loss=True), scenes(4), teacher=str(detr), max_steps=1, save_strategy="no",
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, folder=f"run{size}",
        )  # fmt: skip
        trainer.train()
        [entry] = training_log(trainer)
        logs.append(entry)
    for name in ("loss", "loss_teacher", "grad_norm"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-4), name


def test_a_resumed_run_learns_of_its_teacher_what_an_undisturbed_one_does(make_trainer, detr):
    options = {"teacher": str(detr), "max_steps": 3, "augment": "paper", "dropout": 0.1}
    dropout = options.pop("dropout")
    whole = make_trainer(model(dropout=dropout), **options, save_strategy="steps", save_steps=1, save_total_limit=None)
    whole.train()
    resumed = make_trainer(model(dropout=dropout, seed=5), **options, save_strategy="no", folder="resumed")
    resumed.train(resume_from_checkpoint=Path(whole.args.output_dir, "checkpoint-1"))
    for entry, again in zip(training_log(whole), training_log(resumed), strict=True):
        assert again["loss_teacher"] == pytest.approx(entry["loss_teacher"], rel=1e-6)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


def test_a_teacher_that_cannot_teach_is_an_error_that_names_it(make_trainer, detr, tmp_path):
    stranger = save(tmp_path / "stranger", id2label={index: f"tree {index}" for index in range(5)})
    with pytest.raises(ValueError, match=r"stranger: none of its classes \(tree 0, .*\) has the name of one of the st"):
        make_trainer(teacher=str(stranger))
    with pytest.raises(ValueError, match=r"teacher .*nowhere: .*name a folder or a Hub name with config.json"):
        make_trainer(teacher=str(tmp_path / "nowhere"))
    model().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"teacher .*bare: it has no image processor"):
        make_trainer(teacher=str(tmp_path / "bare"))
    with pytest.raises(ValueError, match=r"pairing 'by query': expected .*a teacher with 4 queries"):
        Lessons(str(detr), small_config(id2label=NAMES, num_queries=4), PROCESSOR, pairing="by query")


def test_a_teacher_that_says_nan_stops_the_training_with_its_name(make_trainer, tmp_path):
    broken = model()
    broken.class_labels_classifier.bias.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    PROCESSOR.save_pretrained(tmp_path / "broken")
    trainer = make_trainer(teacher=str(tmp_path / "broken"), max_steps=1, save_strategy="no")
    with pytest.raises(ValueError, match=r"teacher .*broken: NaN or infinity in what it says of image \d"):
        trainer.train()


@pytest.fixture
def images_dir(tmp_path) -> Path:
    """Three images of different sizes, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(arrays((64, 64), (50, 80), (90, 40))):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_images_are_labelled_with_what_the_teacher_is_sure_of_and_the_rest_is_counted(detr, images_dir):
    teacher, features = Teacher(str(detr), NAMES), scenes(1).features
    files = sorted(images_dir.iterdir())
    every = label_images(teacher, files, features, first_id=7, threshold=0.0)
    assert every.rows.features == features
    assert every.rows["image_id"] == [7, 8, 9]
    assert (every.empty, every.unreadable) == (0, 1)
    for row in every.rows:
        x, y, w, h = np.array(row["objects"]["bbox"]).T
        assert (row["image"].width, row["image"].height) == (row["width"], row["height"])
        assert min(x.min(), y.min()) >= 0
        assert min(w.min(), h.min()) >= 1
        assert (x + w).max() <= row["width"] + 1e-3
        assert (y + h).max() <= row["height"] + 1e-3
    count = sum(len(row["bbox"]) for row in every.rows["objects"])
    assert sum(every.objects.values()) == count

    best = [teacher.look([Image.open(file)], [0]).probabilities[0, :, :-1].amax().item() for file in files[:3]]
    between = sum(sorted(best)[-2:]) / 2  # one image has something above it
    some = label_images(teacher, files, features, threshold=between)
    assert (len(some.rows), some.empty, some.unreadable) == (1, 2, 1)
    [(name, count)] = some.objects.items()
    assert count >= 1
    text = str(some)
    for part in (
        f"1 image with {count} object",
        f"above {between:g}",
        f"({name} {count})",
        "left out: 2 images",
        "1 i",
    ):
        assert part in text
    assert some.counts == {
        "threshold": between, "images": 1, "objects": {name: count}, "empty": 2, "unreadable": 1,
    }  # fmt: skip
