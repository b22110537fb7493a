"""The page as people use it, in a real browser."""

import json
import signal
from pathlib import Path

import pytest

from ..browser import NEEDS_BROWSER, chromium
from .conftest import TINY, served

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    command = ["-m", "hf_detr.cli.main", "serve", "--model", TINY, "--port", "0", "--device", "cpu"]
    with served(*command) as (process, address):
        yield process, address


def rows_of(page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]


def wait_for_rows(page, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#table tbody tr').length === {count}")


def click_at(page, x: float, y: float, side: int = 96) -> None:
    """Where the image of this side has this point."""
    image = page.locator("#drawing img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    page.mouse.click(box["x"] + x / side * box["width"], box["y"] + y / side * box["height"])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_upload_thresholds_a_click_and_downloads(browser, server, files, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server[1])
    page.set_input_files("#files input[type=file]", files[:1])
    page.wait_for_selector("#drawing img")
    before = rows_of(page)
    assert len(before) == 2
    page.wait_for_function("document.querySelector('#caption').innerText.includes('2 objects')")

    def results() -> list[dict]:
        with page.expect_download() as download:
            page.click("#json")
        return json.loads(Path(download.value.path()).read_text())

    assert len(results()) == 2
    with page.expect_download() as download:
        page.click("#image")
    assert download.value.suggested_filename == "0.jpg"

    name, _, left, top, wide, high = before[0]
    click_at(page, float(left) + float(wide) / 2, float(top) + float(high) / 2)
    page.wait_for_selector("#attention img")
    page.wait_for_function("name => document.querySelector('#caption').innerText.includes(name + ' ')", arg=name)
    page.click("#by-class button")
    of_class = page.locator("#by-class").get_by_label(f"number input for {name}", exact=True)
    of_class.wait_for()
    page.screenshot(path=tmp_path / f"{width}_{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert is_dark == (scheme == "dark")

    of_class.fill("1")
    of_class.press("Enter")
    rest = [row for row in before if row[0] != name]
    wait_for_rows(page, len(rest))
    assert rows_of(page) == rest
    assert [row["category"] for row in results()] == [row[0] for row in rest]
    slider = page.locator("#all input[type=range]")
    slider.focus()
    slider.press("Home")  # to 0: every query, of every class
    wait_for_rows(page, json.loads(Path(TINY, "config.json").read_text())["num_queries"])
    slider.press("End")
    wait_for_rows(page, 0)
    assert errors == []
    assert [url for url in asked if not url.startswith((server[1], "data:", "blob:"))] == []
    context.close()


def test_several_images_one_of_them_bad(browser, server, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("words")
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(server[1])
    page.set_input_files("#files input[type=file]", [*files, str(bad)])
    page.wait_for_selector("#gallery img")
    assert "bad.png: not an image" in page.inner_text("#problems")
    page.wait_for_function("document.querySelector('#caption').innerText.includes('0.png: ')")
    page.locator("#gallery button:has(img)").nth(1).click()
    page.wait_for_function("document.querySelector('#caption').innerText.includes('1.png: ')")
    page.close()


def test_an_open_page_does_not_keep_the_server_from_stopping(browser, server, files):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(server[1])
    page.click("#by-class button")
    page.locator("#by-class").get_by_label("number input for zero", exact=True).wait_for()
    server[0].send_signal(signal.SIGINT)
    said, _ = server[0].communicate(timeout=200)
    assert (server[0].returncode, said) == (0, "stopped\n")
    page.close()
