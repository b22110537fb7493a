"""What the page shows of what was found, and what happens when something on it is moved or clicked."""

import html
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from hf_detr.boxes import xywh_to_xyxy
from hf_detr.visualization import draw_attention, draw_detections, draw_masks
from hf_detr.visualization.canvas import as_rgb
from hf_detr.visualization.page import html_table
from hf_detr.wording import counted, printable

from .detector import Detector, Found, Thresholds, above
from .limits import Refused

_THUMBNAIL_PX, _ATTENTION_PX = 256, 960  # long sides
_HINT = "Click inside a box to see what it looked at."
_NO_PLACE = {"visible": False}


@dataclass(frozen=True, eq=False)  # Gradio hashes it to see whether it is another
class Entry:
    """An image of a visitor: the file as it was sent, what was found, and a small copy where there are several."""

    path: Path
    found: Found
    thumbnail: str | None = None


class View:
    """The handlers of the page's events. Their last results are what `show` gives."""

    def __init__(self, detector: Detector):
        self.detector = detector
        self.has_masks = detector.task != "detection"

    def detect(self, paths: Sequence[str] | None, all_classes: float, by_class: Thresholds, style: str) -> tuple:
        """(entries, 0, what could not be read, ...)."""
        files = [Path(path) for path in paths or ()]
        results = self._asked(files, self._thresholds(all_classes, by_class))
        entries = [Entry(path, one) for path, one in zip(files, results, strict=True) if isinstance(one, Found)]
        if len(entries) > 1:
            entries = [replace(one, thumbnail=self._thumbnail(one)) for one in entries]
        problems = dict.fromkeys(str(one) for one in results if isinstance(one, Refused))
        said = "".join(f'<p class="problem" role="alert">{html.escape(problem)}</p>' for problem in problems)
        return (entries, 0, said, *self.show(entries, 0, all_classes, by_class, style))

    def show(
        self, entries: Sequence[Entry], chosen: int, all_classes: float, by_class: Thresholds, style: str
    ) -> tuple:
        """Gallery, drawing, attention, caption, table, and the two files, with these thresholds."""
        if not entries:
            empty = gr.DownloadButton(value=None, interactive=False)
            gallery, image = gr.Gallery(value=[], **_NO_PLACE), gr.Image(value=None, **_NO_PLACE)
            return gallery, image, image, "", "", empty, empty
        thresholds = self._thresholds(all_classes, by_class)
        kept = [above(one.found.rows, thresholds) for one in entries]
        thumbnails = [
            (one.thumbnail, f"{len(rows)} in {one.found.name}")
            for one, rows in zip(entries, kept, strict=True)
            if one.thumbnail
        ]
        entry, rows = entries[chosen], kept[chosen]
        drawing = _saved(self._drawn(entry, rows, style), f"{Path(entry.found.name).stem}.jpg")
        results = _new_folder() / "predictions.json"
        results.write_text(json.dumps(_as_results(entries, kept), indent=1), encoding="utf-8")
        return (
            gr.Gallery(thumbnails, visible=bool(thumbnails)),
            gr.Image(drawing, visible=True),
            gr.Image(value=None, **_NO_PLACE),
            f"<p>{html.escape(entry.found.name)}: {counted(len(rows), 'object')}. {_HINT if rows else _LOWER}</p>",
            _table(rows),
            gr.DownloadButton(value=results, interactive=True),
            gr.DownloadButton(value=drawing, interactive=True),
        )

    def choose(
        self,
        entries: Sequence[Entry],
        all_classes: float,
        by_class: Thresholds,
        style: str,
        event: gr.SelectData,
    ) -> tuple:
        """(the number of the image, ...)."""
        return (event.index, *self.show(entries, event.index, all_classes, by_class, style))

    def move_all(self, all_classes: float, entries: Sequence[Entry], chosen: int, style: str) -> tuple:
        """(entries, {}, ...): the slider of all classes, after which none has a threshold of its own."""
        return self._again(entries, chosen, all_classes, {}, style)

    def move_one(
        self,
        label: int,
        value: float,
        entries: Sequence[Entry],
        chosen: int,
        all_classes: float,
        by_class: Thresholds,
        style: str,
    ) -> tuple:
        """(entries, thresholds by class, ...): the slider of one class."""
        return self._again(entries, chosen, all_classes, {**by_class, label: value}, style)

    def look(
        self,
        entries: Sequence[Entry],
        chosen: int,
        all_classes: float,
        by_class: Thresholds,
        drawing: str,
        event: gr.SelectData,
    ) -> tuple:
        """(attention, caption) of the box at the place that was clicked in the drawing."""
        if not entries:  # kept for an hour
            return gr.Image(value=None, **_NO_PLACE), "<p>The server no longer has this image; send it again.</p>"
        entry = entries[chosen]
        with Image.open(drawing) as drawn:
            x, y = event.index[0] / drawn.width, event.index[1] / drawn.height
        try:
            thresholds = self._thresholds(all_classes, by_class)
            looked = self.detector.look(entry.path, entry.found.name, x, y, thresholds)
            if looked is None:
                return gr.Image(value=None, **_NO_PLACE), f"<p>No box is there. {_HINT}</p>"
            image = self._image(entry)
        except Refused as error:
            raise _shown(error) from error
        image.thumbnail((_ATTENTION_PX, _ATTENTION_PX))
        box = {
            "scores": torch.tensor([looked.score]),
            "labels": torch.tensor([looked.label]),
            "boxes": (looked.box_xyxy * torch.tensor(image.size).repeat(2))[None],
        }
        drawn = draw_detections(draw_attention(image, looked.attention), box, self.detector.id2label)
        name = html.escape(printable(self.detector.id2label[looked.label]))
        said = f"<p><b>{name} {looked.score:.2f}</b>: what its query took from where, the brighter, the more.</p>"
        return gr.Image(_saved(drawn, "attention.jpg"), visible=True), said

    def labels(self, entries: Sequence[Entry], most: int) -> list[int]:
        """The classes to have sliders for: those that were found, the surest first, and then the others."""
        rows = [row for one in entries for row in one.found.rows]
        seen = dict.fromkeys(row["category_id"] for row in sorted(rows, key=lambda row: -row["score"]))
        return list({**seen, **dict.fromkeys(self.detector.id2label)})[:most]

    def _again(
        self, entries: Sequence[Entry], chosen: int, all_classes: float, by_class: Thresholds, style: str
    ) -> tuple:
        if self.has_masks and entries:
            results = self._asked([one.path for one in entries], self._thresholds(all_classes, by_class))
            for result in results:
                if isinstance(result, Refused):
                    raise _shown(result)
            entries = [replace(one, found=found) for one, found in zip(entries, results, strict=True)]
        return (entries, by_class, *self.show(entries, chosen, all_classes, by_class, style))

    def _thresholds(self, all_classes: float, by_class: Thresholds) -> Thresholds:
        return {label: by_class.get(label, all_classes) for label in self.detector.id2label}

    def _asked(self, files: Sequence[Path], thresholds: Thresholds) -> list[Found | Refused]:
        """What was found in each file, or why nothing. Masks compete for pixels, so theirs are found anew for other
        thresholds; boxes are all kept here, and those to show are chosen from them."""
        if not self.has_masks:
            thresholds = dict.fromkeys(thresholds, 0.0)
        try:
            futures = self.detector.submit([(file, file.name) for file in files], thresholds)
        except Refused as error:
            return [error] * len(files)
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None and not isinstance(error, Refused):
                raise error
        return [error or future.result() for error, future in zip(errors, futures, strict=True)]

    def _image(self, entry: Entry) -> Image.Image:
        image = self.detector.open(entry.path, entry.found.name)
        return as_rgb(image if image.shape[0] in (1, 3, 4) else image[:1])  # of many channels the first

    def _thumbnail(self, entry: Entry) -> str:
        image = self._image(entry)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        return _saved(image, "small.jpg")

    def _drawn(self, entry: Entry, rows: Sequence[Mapping[str, Any]], style: str) -> Image.Image:
        detections = {
            "scores": torch.tensor([row["score"] for row in rows]),
            "labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.int64),
            "boxes": xywh_to_xyxy(torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)),
        }
        try:
            image = self._image(entry)
        except Refused as error:
            raise _shown(error) from error
        if self.has_masks and style == "masks":
            detections["masks"] = [row["segmentation"] for row in rows]
            return draw_masks(image, detections, self.detector.id2label)
        return draw_detections(image, detections, self.detector.id2label)


_LOWER = "Lower the threshold to see more."


def _shown(error: Refused) -> gr.Error:
    return gr.Error(html.escape(str(error)), print_exception=False)


def _as_results(entries: Sequence[Entry], kept: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """As predictions.json of `hf-detr predict` has them."""
    return [
        {"image_id": number, "file_name": entry.found.name, **row}
        for number, (entry, rows) in enumerate(zip(entries, kept, strict=True), start=1)
        for row in rows
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("class", "score", "left", "top", "width", "height")
    cells = [
        (printable(row["category"]), f"{row['score']:.2f}", *(f"{side:.1f}" for side in row["bbox"])) for row in rows
    ]
    return html_table(head, cells) if rows else ""


def _new_folder() -> Path:
    """Where Gradio serves files from, and deletes them."""
    folder = Path(get_upload_folder(), uuid.uuid4().hex)
    folder.mkdir(parents=True)
    return folder


def _saved(image: Image.Image, name: str) -> str:
    path = _new_folder() / name
    image.save(path, quality=92)
    return str(path)
