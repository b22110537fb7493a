"""What benchmarks/time_to_ap.py says of its runs, and that its contestants start alike."""

from dataclasses import asdict, replace

import pytest
import torch

from convergence.cases import Case, _inputs, _rows
from convergence.contestants import FIELDS, make_model, make_optimizer, settings_of
from convergence.one_run import augmentations, augmented_batch, train
from convergence.summary import plot, table
from hf_detr import DetrImageProcessor, shape_scenes
from hf_detr.data.schema import id2label
from hf_detr.training.recipes import RECIPES
from tests.small_models import images, small_model, targets


def run(last: float, minutes: float = 1.0) -> dict:
    """A run whose AP rises on a straight line."""
    curve = [
        {"seconds": 60 * minutes * k / 8, "steps": 10 * k, "map": last * k / 8, "map_50": last * k / 8}
        for k in range(1, 9)
    ]
    return {"ms_per_step": 100.0, "images": 1280, "curve": curve}


def test_the_table_says_when_a_contestant_reaches_what_the_best_of_stock_ends_with(tmp_path):
    recorded = {
        "case": "digits",
        "minutes": 1.0,
        "runs": {
            "stock": {"0": run(0.04)},
            "stock-example": {"0": run(0.1)},
            "stock-auxiliary": {"0": run(0.1), "1": run(0.2), "2": run(0.3)},
            "paper": {"0": run(0.2), "1": run(0.4)},
            "fast": {"0": run(0.8)},
        },
    }
    rows = {line.split(" | ")[0].strip("| "): line for line in table(recorded).splitlines()[2:]}
    assert "| 20.0 (10.0 to 30.0) |" in rows["stock-auxiliary"]  # AP after all of the time, mean and spread
    assert rows["paper"].endswith("| 0.67 | 0.33 |")
    assert rows["fast"].endswith("| 0.25 | 0.12 |")
    assert rows["fast"].count("| 20.0 |") == rows["fast"].count("| 40.0 |") == 1  # after a quarter, and a half
    assert rows["stock"].endswith("| no | no |")
    plot(recorded, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_contestants_start_from_the_same_outputs(tmp_path):
    small_model().save_pretrained(tmp_path)
    pixels, _ = images((64, 64), (64, 64))
    # with its auxiliary loss on, stock's logits are others: that is one of its faults
    names = ("paper", "stock", "fast", "fast-groups", "base")
    models = {name: make_model(tmp_path, settings_of(name)) for name in names}
    outputs = {name: model.eval()(pixels) for name, model in models.items()}
    for name, output in outputs.items():
        torch.testing.assert_close(output.logits, outputs["paper"].logits, rtol=0, atol=1e-4, msg=name)
    for name in set(names) - {"stock"}:
        assert all(getattr(models[name].config, field) == settings_of(name)[field] for field in FIELDS), name
    assert models["base"].training_only.queries is not None
    assert models["fast"].training_only.queries is None
    assert models["fast"].training_only.encoder_head is not None


def test_a_restored_stock_has_the_activations_that_stock_drops(tmp_path):
    small_model(backbone="test_efficientnet").save_pretrained(tmp_path)
    pixels, _ = images((64, 64), (64, 64))
    outputs = {
        name: make_model(tmp_path, settings_of(name)).eval()(pixels) for name in ("paper", "stock", "stock-restored")
    }
    torch.testing.assert_close(outputs["stock-restored"].logits, outputs["paper"].logits, rtol=0, atol=1e-4)
    assert not torch.allclose(outputs["stock"].logits, outputs["paper"].logits, rtol=0, atol=1e-4)


def test_a_run_that_ends_early_is_compared_at_its_own_end():
    short = run(0.3, minutes=1 / 3)
    recorded = {"case": "digits", "minutes": 1.0, "runs": {"stock": {"0": run(0.3)}, "fast-third": {"0": short}}}
    row = table(recorded).splitlines()[-1]
    assert "| 22.5 |  |  | 30.0 | 0.33 |" in row


@pytest.mark.parametrize("name", ["stock-example", "stock-auxiliary", "fast"])
def test_a_contestant_trains(tmp_path, name):
    small_model(dropout=0.0).save_pretrained(tmp_path)
    settings = settings_of(name)
    model = make_model(tmp_path, settings)
    optimizer = make_optimizer(model, settings, 1e-3, 1e-4)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    wanted = {"stock-example": [5e-5], "stock-auxiliary": [1e-4, 1e-3], "fast": [1e-4, 1e-3, 1e-2]}
    assert rates == pytest.approx(wanted[name])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(p.requires_grad for p in model.parameters())
    pixels, _ = images((64, 64), (64, 64))
    torch.manual_seed(0)
    losses = []
    for _ in range(8):
        loss = model(pixels, labels=targets(3, 2)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.fixture
def photographs(tmp_path):
    """A case with rows, prepared in a file, and the folder of the model to start from."""
    scenes, processor = shape_scenes(4, 64), DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    small_model(id2label=id2label(scenes), dropout=0.0).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    case = Case("bccd", *_inputs(processor, scenes), scenes, processor, 2, 1e-3, 1e-3, True, False)
    case.rows = _rows(processor, scenes)
    torch.save(case, tmp_path / "case.pt")
    return case, tmp_path


@pytest.mark.parametrize("augment", ["none", "paper", "strong"])
def test_a_contestant_trains_with_every_augmentation(photographs, augment):
    _, folder = photographs
    settings = {**settings_of("fast"), "augment": augment}
    run = train(folder / "case.pt", folder / "start", settings, seed=0, minutes=0.004, points=2, device="cpu")
    assert len(run["curve"]) == 2
    assert run["images"] >= 2


def test_images_are_augmented_in_most_of_the_clock_and_mirrored_at_most_at_its_end(photographs):
    case, _ = photographs
    most, end = augmentations(case, "strong")
    batches = []
    for transform in (most, most, end):
        torch.manual_seed(0)
        batches.append(augmented_batch(case, transform, [2, 0], "cpu"))
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert not torch.equal(batches[0]["pixel_values"], batches[2]["pixel_values"])
    for pixels, plain in zip(batches[2]["pixel_values"], case.pixels[[2, 0]].float(), strict=True):
        assert min((pixels - one).abs().max() for one in (plain, plain.flip(-1))) < 0.02
    assert [len(label["boxes"]) for label in batches[2]["labels"]] == [len(case.labels[i]["boxes"]) for i in (2, 0)]
    with pytest.raises(ValueError, match="the case bccd has no rows"):
        augmentations(replace(case, rows=None), "paper")


def test_fast_is_the_packages_recipe():
    settings, recipe = settings_of("fast"), asdict(RECIPES["fast"])
    assert {name: settings[name] for name in recipe} == recipe


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="no contestant 'slow'"):
        settings_of("slow")
