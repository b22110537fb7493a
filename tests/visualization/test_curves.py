"""Curves of a training: drawn from what trainers log, without touching the caller's matplotlib."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_detr.visualization import plot_curves


def history(epochs=5, **extra):
    entries = []
    for epoch in range(1, epochs + 1):
        train = {"loss": 5 / epoch, "loss_ce": 2 / epoch, "loss_ce_0": 3.0, "learning_rate": 1e-4}
        entries.append(train | {"epoch": epoch})
        entries.append({"eval_loss": 6 / epoch, "eval_loss_ce": 2.5 / epoch, "eval_map": 0.1 * epoch, "epoch": epoch})
    return [*entries, {"train_runtime": 9.0, "train_loss": 3.0, "epoch": epochs}, *([extra] if extra else [])]


def drawn(entries, path):
    plot_curves(entries, path)
    return np.asarray(Image.open(path).convert("RGB"))


def test_one_picture_with_a_panel_for_everything_logged(tmp_path):
    whole = drawn(history(), tmp_path / "new/curves.png")
    only_loss = drawn([{"loss": 3.0 - i, "step": i} for i in range(3)], tmp_path / "loss.png")
    height, width = only_loss.shape[:2]
    assert whole.shape[:2] == (2 * height, 2 * width)
    for rows in (slice(0, height), slice(height, None)):
        for columns in (slice(0, width), slice(width, None)):
            assert (whole[rows, columns] < 250).any()


@pytest.mark.parametrize(
    ("key", "value", "matters"),
    [
        ("eval_map", 0.7, True),
        ("loss_giou", 2.0, True),
        ("loss_ce_3", 9.0, False),  # of a single decoder layer
        ("eval_runtime", 9.0, False),
        ("note", "text", False),
    ],
)
def test_what_is_drawn_and_what_is_passed_over(tmp_path, key, value, matters):
    without = drawn(history(), tmp_path / "without.png")
    with_it = drawn(history(**{key: value, "epoch": 5.5}), tmp_path / "with.png")
    assert np.array_equal(without, with_it) is not matters


def test_the_summary_of_the_run_is_no_point_of_a_curve(tmp_path):
    with_summary = drawn(history(), tmp_path / "with.png")
    without = drawn([entry for entry in history() if "train_runtime" not in entry], tmp_path / "without.png")
    assert np.array_equal(with_summary, without)


def test_undefined_and_infinite_values_leave_a_gap(tmp_path):
    entries = history()
    entries[1]["eval_map"] = -1.0
    entries[2]["loss"] = float("nan")
    entries[4]["loss"] = float("inf")
    drawn(entries, tmp_path / "curves.png")
    ap_only = [{"map": -1.0, "map_50": 0.4, "epoch": 1}, {"map": 0.3, "map_50": 0.5, "epoch": 2}]
    drawn(ap_only, tmp_path / "ap.png")


def test_a_long_training_is_smoothed_and_still_drawn(tmp_path):
    rng = np.random.default_rng(0)
    picture = drawn([{"loss": 2 + rng.normal(), "step": i} for i in range(2000)], tmp_path / "curves.png")
    assert (picture < 250).any()


def test_entries_without_epoch_or_step_are_counted(tmp_path):
    by_position = drawn([{"loss": 3.0 - i} for i in range(3)], tmp_path / "a.png")
    assert (by_position < 250).any()


@pytest.mark.parametrize("entries", [[], [{"epoch": 1, "grad_norm": 2.0}], [{"loss": float("nan"), "epoch": 1}]])
def test_nothing_to_draw_is_an_error(tmp_path, entries):
    with pytest.raises(ValueError, match=f"history of {len(entries)} entries"):
        plot_curves(entries, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    script = (
        "import sys, matplotlib\n"
        "matplotlib.use('svg')\n"
        "before = dict(matplotlib.rcParams)\n"
        "from hf_detr.visualization import plot_curves\n"
        f"plot_curves([{{'loss': 1.0, 'step': 1}}], {str(tmp_path / 'curves.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(matplotlib.rcParams) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_learning_rate_is_drawn(tmp_path):
    one = [{"learning_rate": 1e-3, "step": step} for step in (1, 2)]
    two = [{**entry, "learning_rate_backbone": 1e-4} for entry in one]
    assert not np.array_equal(drawn(one, tmp_path / "one.png"), drawn(two, tmp_path / "two.png"))


def test_no_line_crosses_a_legend(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    plot_curves([{**entry, "learning_rate_backbone": 1e-5} for entry in history(50)], tmp_path / "curves.png")
    [figure] = figures
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes]
    assert sum(legend is not None for legend in legends) == 3
    for axes, legend in zip(figure.axes, legends, strict=True):
        if legend is not None:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
            assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_rates_are_steps_and_small_parts_of_the_loss_are_as_visible_as_large_ones(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    plot_curves(history(), tmp_path / "curves.png")
    axes = {one.get_title(): one for one in figures[0].axes}
    assert axes["Parts of the loss"].get_yscale() == axes["Learning rate"].get_yscale() == "log"
    assert axes["Loss"].get_yscale() == "linear"
    [line] = axes["Learning rate"].get_lines()
    assert line.get_drawstyle() == "steps-pre"
