import io
import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from hf_detr.serving.server import create_app
from hf_detr.serving.view import View

from ..small_models import small_segmenter
from .conftest import encoded, open_detector


def path_of(component) -> Path:
    """The file that a component of the page shows or gives."""
    return Path(component.value["path"])


def results_in(shown) -> list[dict]:
    """Of what `View.show` gives the content of the JSON file."""
    return json.loads(path_of(shown[-2]).read_text())


def test_thresholds_of_all_and_of_one_class_choose_what_is_in_drawing_table_and_json(detector, files):
    view = View(detector)
    entries, chosen, problems, *shown = view.detect(files, 0.5, {}, "boxes")
    assert (len(entries), chosen, problems) == (3, 0, "")
    rows = results_in(shown)
    assert {row["image_id"] for row in rows} == {1, 2, 3}
    assert shown[4].count("<tr>") == 1 + sum(row["image_id"] == 1 for row in rows)

    every = results_in(view.move_all(0.0, entries, 0, "boxes")[2:])
    assert len(every) == 3 * detector.model.config.num_queries
    label = rows[0]["category_id"]
    same, by_class, *shown = view.move_one(label, 1.0, entries, 0, 0.5, {}, "boxes")
    assert (same, by_class) == (entries, {label: 1.0})
    assert results_in(shown) == [row for row in rows if row["category_id"] != label]
    with Image.open(path_of(shown[-1])) as drawing:
        assert drawing.width == 7 * 96  # enlarged, so that names can be read
    assert view.move_all(0.5, entries, 0, "boxes")[1] == {}


def test_files_that_are_no_images_are_named_beside_the_others_and_escaped(detector, files, tmp_path):
    bad = tmp_path / "<b>.png"
    bad.write_text("words")
    entries, _, problems, *shown = View(detector).detect([files[0], str(bad), files[1]], 0.5, {}, "boxes")
    assert [entry.found.name for entry in entries] == ["0.png", "1.png"]
    assert "&lt;b&gt;.png: not an image" in problems
    assert results_in(shown)
    _, _, _, *nothing = View(detector).detect([], 0.5, {}, "boxes")
    assert nothing[3:5] == ["", ""]


def test_a_click_shows_what_the_smallest_box_around_it_looked_at(detector, files):
    view = View(detector)
    entries, _, _, *shown = view.detect(files, 0.5, {}, "boxes")
    drawing = path_of(shown[-1])
    row = results_in(shown)[0]
    x, y = (7 * (row["bbox"][i] + row["bbox"][2 + i] / 2) for i in (0, 1))
    attention, said = view.look(entries, 0, 0.5, {}, drawing, SimpleNamespace(index=[x, y]))
    assert f"<b>{row['category']} {row['score']:.2f}</b>" in said
    with Image.open(path_of(attention)) as drawn, Image.open(files[0]) as image:
        assert max(drawn.size) >= 640
        assert drawn.resize(image.size).convert("L").getextrema() != image.convert("L").getextrema()
    _, said = view.look(entries, 0, 1.0, {}, drawing, SimpleNamespace(index=[x, y]))
    assert "No box is there" in said


def test_what_was_looked_at_is_what_is_recorded_of_that_query(detector, files):
    thresholds = dict.fromkeys(detector.id2label, 0.5)
    [found] = [future.result() for future in detector.submit([(Path(files[0]), "0.png")], thresholds)]
    for row in found.rows:
        left, top, width, height = row["bbox"]
        looked = detector.look(
            Path(files[0]), "0.png", (left + width / 2) / found.width, (top + height / 2) / found.height, thresholds
        )
        assert looked.label == row["category_id"]
        assert looked.score == pytest.approx(row["score"], abs=1e-4)
        torch.testing.assert_close(looked.attention.sum(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_masks_are_found_anew_for_other_thresholds_and_shown_as_masks_or_boxes(files):
    with open_detector(small_segmenter(num_labels=3)) as detector:
        view = View(detector)
        entries, _, _, *shown = view.detect(files[:1], 0.5, {}, "masks")
        few = results_in(shown)
        entries, _, *shown = view.move_all(0.3, entries, 0, "masks")
        many = results_in(shown)
        assert 0 < len(few) < len(many) == len(entries[0].found.rows)
        assert all("segmentation" in row for row in many)
        drawings = [path_of(view.show(entries, 0, 0.3, {}, style)[-1]) for style in ("masks", "boxes")]
        masks, boxes = (Image.open(path).tobytes() for path in drawings)
        assert masks != boxes


def test_page_and_endpoint_begin_with_the_saved_thresholds_unless_one_is_given(scenes):
    with open_detector() as detector:
        every = detector.submit([(io.BytesIO(encoded(scenes[0])), "0.png")], dict.fromkeys(detector.id2label, 0.5))
        labels = {row["category_id"] for row in every[0].result().rows}
        hidden = min(labels)
        detector.processor.class_thresholds = {hidden: 1.0}
        for threshold, expected, own in ((None, labels - {hidden}, {hidden: 1.0}), (0.5, labels, {})):
            app = create_app(detector, threshold)
            answer = TestClient(app).post("/detect", files={"image": encoded(scenes[0])}).json()
            assert {row["category_id"] for row in answer["images"][0]["detections"]} == expected
            page = app.routes[-1].app.get_blocks()
            assert own in [block.value for block in page.blocks.values() if isinstance(block, gr.State)]
            [accordion] = [block for block in page.blocks.values() if isinstance(block, gr.Accordion)]
            assert accordion.open == bool(own)  # they are seen at once
