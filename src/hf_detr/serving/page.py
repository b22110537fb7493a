"""The web page: images in, thresholds, boxes or masks, what the clicked box looked at, and downloads."""

import html
from functools import partial

import gradio as gr

from hf_detr.data.formats.base import IMAGE_SUFFIXES
from hf_detr.wording import printable

from .detector import Detector, Thresholds
from .limits import MIB
from .view import View

_MOST_SLIDERS = 30
_KEPT_S = 3600  # what a visitor sent and got

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    body_text_color_subdued="*neutral_500",  # a contrast of 4.8 with white; the default has 2.6
    link_text_color_dark="*secondary_400",  # 5.9 with the dark blocks; the default has 4.1
)
CSS = """
.scroll { overflow-x: auto; }
.scroll table { border-collapse: collapse; width: 100%; }
.scroll table, .scroll tr, .scroll th, .scroll td { border-width: 0; }
.scroll th, .scroll td { padding: .2rem .25rem; text-align: right; font-size: .85rem;
  border-bottom-width: 1px; border-color: var(--border-color-primary); }
.scroll th:first-child, .scroll td:first-child { text-align: left; }
.problem { border-left: .25rem solid #d55e00; padding: .25rem .75rem; overflow-wrap: anywhere; }
#title h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
#title a { margin: 0; padding: 0; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
input[type=range]::-webkit-slider-thumb { outline: 1px solid #71717a; }
input[type=range]::-moz-range-thumb { outline: 1px solid #71717a; }
#drawing img, #attention img { max-height: 80vh; }
"""


def create_page(detector: Detector, threshold: float, by_class: Thresholds) -> gr.Blocks:
    """The page; `threshold` is where the slider of all classes is at first, `by_class` has those of classes that
    differ from it."""
    view, limits = View(detector), detector.limits
    with gr.Blocks(title=printable(detector.name), analytics_enabled=False, delete_cache=(600, _KEPT_S)) as page:
        entries, chosen = gr.State([], time_to_live=_KEPT_S), gr.State(0, time_to_live=_KEPT_S)
        own = gr.State(dict(by_class), time_to_live=_KEPT_S)
        gr.HTML(
            f"<h1>{html.escape(printable(detector.name))}</h1><p>At most {limits.images} images, each of at most "
            f"{limits.image_bytes / MIB:g} MiB and {limits.image_px / 1e6:g} million pixels. Programs send them to "
            '<code>POST /detect</code>, which <a href="openapi.json">openapi.json</a> describes.</p>',
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                suffixes = [*IMAGE_SUFFIXES, ".avif"]
                files = gr.File(
                    label="One image or several", file_count="multiple", file_types=suffixes, elem_id="files"
                )
                # classes that have one of their own are shown with it at once: the slider of all says nothing of them
                info = "Moving it sets every class." if by_class else None
                slider = gr.Slider(0, 1, threshold, step=0.01, label="Threshold, all classes", info=info, elem_id="all")
                style = gr.Radio(["masks", "boxes"], value="masks", label="Show", visible=view.has_masks)
                sliders = gr.Accordion("Thresholds by class", open=bool(by_class), elem_id="by-class")
                with gr.Row():
                    as_json = gr.DownloadButton(
                        "Save JSON", interactive=False, elem_id="json", size="md", min_width=100
                    )
                    as_image = gr.DownloadButton(
                        "Save image", interactive=False, elem_id="image", size="md", min_width=100
                    )
            with gr.Column(scale=2, min_width=300):
                problems = gr.HTML(elem_id="problems")
                images = {
                    "min_width": 300,
                    "interactive": False,
                    "visible": False,
                    "buttons": ["fullscreen"],
                    "format": "jpeg",
                }
                gallery = gr.Gallery(
                    label="Images", visible=False, allow_preview=False, height=180, buttons=[], elem_id="gallery"
                )
                caption = gr.HTML(elem_id="caption")
                with gr.Row():
                    drawing = gr.Image(label="Detections", type="filepath", elem_id="drawing", **images)
                    attention = gr.Image(label="Attention", elem_id="attention", **images)
                table = gr.HTML(elem_id="table")
        shown = [gallery, drawing, attention, caption, table, as_json, as_image]
        thresholds = [slider, own]

        with sliders:

            @gr.render([entries, slider, own], triggers=[page.load, entries.change, slider.change])
            def by_classes(found: list, all_classes: float, of_classes: Thresholds) -> None:
                for label in view.labels(found, _MOST_SLIDERS):
                    name, value = printable(detector.id2label[label]), of_classes.get(label, all_classes)
                    one = gr.Slider(0, 1, value, step=0.01, label=name, interactive=True)
                    inputs = [one, entries, chosen, *thresholds, style]
                    one.input(partial(view.move_one, label), inputs, [entries, own, *shown], **_DRAGGED)

        event = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": caption}
        inputs = [files, *thresholds, style]
        files.change(view.detect, inputs, [entries, chosen, problems, *shown], **event)
        slider.input(view.move_all, [slider, entries, chosen, style], [entries, own, *shown], **_DRAGGED)
        style.change(view.show, [entries, chosen, *thresholds, style], shown, **event)
        gallery.select(view.choose, [entries, *thresholds, style], [chosen, *shown], **event)
        drawing.select(view.look, [entries, chosen, *thresholds, drawing], [attention, caption], **event)
    return page.queue(max_size=limits.queue, default_concurrency_limit=2 * limits.batch)


# while a slider is dragged, the last of its values counts
_DRAGGED = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
