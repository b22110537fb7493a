"""Pages and plots on any screen: narrow or wide, light or dark."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from hf_detr.evaluation import CocoEvaluator
from hf_detr.evaluation.analysis import Analysis, analyse
from hf_detr.visualization import explanation_page
from hf_detr.visualization.analysis_plots import (
    calibration_figure,
    confusion_figure,
    precision_recall_figure,
    threshold_figure,
)
from hf_detr.visualization.attention import Recording
from hf_detr.visualization.curves import plot_precision
from hf_detr.visualization.report_page import write_report
from hf_detr.visualization.tradeoff import plot_quality_against_time

from ..browser import NEEDS_BROWSER, chromium

LONG = "_as_long_as_the_name_of_a_class_or_file_may_be"


def analysis_of(num_classes: int) -> Analysis:
    """Every class has an object that is found and one that is not."""
    evaluator = CocoEvaluator([f"{number}{LONG}" for number in range(num_classes)])
    labels = np.arange(num_classes)
    boxes = np.tile([0.0, 0.0, 30.0, 30.0], (num_classes, 1)) + 40.0 * labels[:, None] * [1, 0, 1, 0]
    objects = {"bbox": (boxes - boxes[:, [0, 1, 0, 1]] * [0, 0, 1, 1]).tolist(), "category": labels.tolist()}
    found = {"labels": labels, "boxes": boxes, "scores": np.linspace(0.3, 0.9, num_classes)}
    nothing = {name: values[:0] for name, values in found.items()}
    objects |= {"area": [900.0] * num_classes, "iscrowd": [0] * num_classes}
    evaluator.update([found, nothing], [{"image_id": number, "objects": objects} for number in (1, 2)])
    return analyse(evaluator)


def report(path: Path) -> None:
    image = Image.new("RGB", (640, 480), "grey")
    write_report(analysis_of(12), path, f"runs/{LONG} on data", [(f"{LONG}.jpg", image, image), (LONG, image, image)])


def explanation(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    recording = Recording(
        20.0 * torch.nn.functional.one_hot(torch.arange(20).expand(6, -1) % 3, 4),
        0.1 + 0.8 * torch.rand((6, 20, 4), generator=generator),
        torch.rand((6, 20, 3, 4), generator=generator),
        torch.rand((3, 4, 3, 4), generator=generator),
    )
    names = {number: f"{number}{LONG}" for number in range(3)}
    queries = Image.new("RGB", (1000, 800), "white")
    path.write_text(explanation_page(recording, Image.new("RGB", (640, 480)), names, title=LONG, queries=queries))


PAGES = pytest.mark.parametrize("write", [report, explanation])


@PAGES
def test_every_page_is_for_phones_and_the_dark_too_and_names_no_other_place(write, tmp_path):
    write(tmp_path / "page.html")
    page = re.sub(r"base64,[\w+/=]+", "", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert '<meta name="viewport" content="width=device-width' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "default-src 'none'" in page
    assert "://" not in page


def luminance(color) -> float:
    """WCAG 2's of an RGB colour in [0, 1]."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.clip(color, 0, 1)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def as_on_a_dark_page(color) -> np.ndarray:
    """CSS's invert(.92) hue-rotate(180deg)."""
    turned = 2 * np.tile((0.213, 0.715, 0.072), (3, 1)) - np.eye(3)
    return turned @ (0.92 - 0.84 * np.array(color))


@pytest.mark.parametrize("make", [precision_recall_figure, threshold_figure])
def test_lines_stand_out_from_paper_light_or_dark(make):
    figure, _ = make(analysis_of(10))
    colors = [to_rgb(line.get_color()) for line in figure.axes[0].lines]
    assert len(set(colors)) == 11
    white = (1, 1, 1)
    for color in colors:
        assert contrast(color, white) >= 3
        assert contrast(as_on_a_dark_page(color), as_on_a_dark_page(white)) >= 3


@pytest.mark.parametrize("make", [precision_recall_figure, threshold_figure, confusion_figure, calibration_figure])
def test_a_plot_of_ten_long_names_fits_a_phone_with_letters_of_seven_pixels(make):
    figure, _ = make(analysis_of(10))
    assert 72 * figure.get_figwidth() <= 390 - 2 * 16 - 2 * 8  # a point is a pixel; the page's padding, the plot's
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 7
    legends = [(legend, legend.get_window_extent()) for legend in figure.legends]
    assert all(extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 for _, extent in legends)


@pytest.fixture
def saved(monkeypatch) -> list[Figure]:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    return figures


def test_long_names_of_models_stay_in_the_plot(saved, tmp_path):
    plot_precision({f"{LONG * 4}/{number}": ([0, 1], [1, 0]) for number in range(3)}, tmp_path / "plot.png")
    saved[0].draw_without_rendering()
    extent = saved[0].legends[0].get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= saved[0].bbox.x1


@pytest.mark.parametrize("times", [(1.2, 900.0), (1.9, 16.0), (10.0, 12.5), (40.0, 250.0)])
def test_no_two_numbers_of_the_time_lie_on_each_other(saved, tmp_path, times):
    plot_quality_against_time({str(ms): (ms, 0.4) for ms in times}, "AP", tmp_path / "plot.png")
    saved[0].draw_without_rendering()
    axis = saved[0].axes[0].xaxis
    labels = [tick.label1 for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if tick.label1.get_text()]
    left, right = saved[0].axes[0].get_window_extent().intervalx
    extents = sorted((one.x0, one.x1) for one in (label.get_window_extent() for label in labels))
    extents = [(x0, x1) for x0, x1 in extents if left <= (x0 + x1) / 2 <= right]
    assert len(extents) >= 2
    assert all(one[1] <= other[0] for one, other in pairwise(extents))


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


BEYOND = """() => [...document.querySelectorAll('body *')].filter((one) => !one.closest('.scroll') &&
  one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((one) => one.outerHTML.slice(0, 99))
"""


class TestInABrowser:
    pytestmark = NEEDS_BROWSER

    @PAGES
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_a_page_fits_and_a_click_enlarges(self, browser, write, tmp_path, width, scheme):
        write(tmp_path / "page.html")
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page, errors = context.new_page(), []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(BEYOND) == []
        is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
        is_inverted = page.evaluate("getComputedStyle(document.querySelector('.plot img')).filter !== 'none'")
        assert is_dark == is_inverted == (scheme == "dark")
        if write is report:
            page.locator(".images a:not(.close)").nth(1).click()
            large = page.locator(".images figure:target a:not(.close)").bounding_box()
            assert large == {"x": 0, "y": 0, "width": width, "height": 844}
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.locator(".close:visible").click()
            assert page.locator(".images figure:target").count() == 0
        else:
            assert page.locator(".box span:visible").count() == 0  # of twenty: one at a time
            page.locator("tr[data-number]").first.click()
            assert page.locator(".box span:visible").count() == 1
            page.locator(".layers button").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert errors == []
        context.close()
