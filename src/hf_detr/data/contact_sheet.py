"""One sheet of many images: those of a data set with boxes and masks drawn, to see at a glance what is wrong."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from ..visualization.text import drawable, font, shortened
from .masks import MaskError, SegmentFiles, decode_segmentation
from .schema import class_names
from .targets import read_targets
from .transform import decode_image

_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#f032e6",
    "#9a6324",
    "#808000",
    "#000075",
)


def draw_contact_sheet(dataset: Any, path: str | Path, n: int = 16, columns: int = 4, tile_px: int = 320) -> Path:
    """Writes `n` images, evenly spread over a split (a stream: its first), with boxes, class names and, where there are
    some, masks, as one image.

    Boxes are drawn as they are, bad ones too, so that a sheet of data loaded with on_bad_box="keep" shows them. The
    file's type follows from the suffix of `path`, whose folder is made. Images that cannot be decoded become a tile
    that says so. Raises ValueError for a data set without images.
    """
    names = class_names(dataset)
    rows = _spread(dataset, n)
    if not rows:
        raise ValueError("expected at least one image to draw, got an empty data set; choose another split.")
    columns = min(columns, len(rows))
    sheet = Image.new("RGB", (columns * tile_px, -(-len(rows) // columns) * tile_px), "white")
    for index, row in enumerate(rows):
        sheet.paste(_tile(row, names, tile_px), (index % columns * tile_px, index // columns * tile_px))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _spread(dataset: Any, n: int) -> list[dict]:
    undecoded = dataset.cast_column("image", ImageFeature(decode=False))
    if isinstance(dataset, Dataset):
        n = min(n, len(dataset))
        return [undecoded[index * len(dataset) // n] for index in range(n)]
    return list(undecoded.take(n))


def _tile(row: dict, names: list[str], tile_px: int) -> Image.Image:
    tile = Image.new("RGB", (tile_px, tile_px), "#dddddd")
    draw, letters = ImageDraw.Draw(tile), font(11)
    room = tile_px - 18  # the rest is the title's
    try:
        image = decode_image(row)
    except ValueError as error:
        draw.multiline_text((4, 4), _wrapped(drawable(str(error)), tile_px // 7), fill="red", font=letters)
        return tile
    scale = min((tile_px - 4) / image.width, room / image.height)
    shown = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    tile.paste(shown, (2, 17))
    targets = read_targets(row, f"image_id {row['image_id']}")
    files = SegmentFiles()
    for category, segmentation in zip(targets.labels.tolist(), targets.segmentations or (), strict=False):
        try:
            mask = decode_segmentation(segmentation, (image.height, image.width), files=files)
        except MaskError:
            continue  # a sheet of bad data shows what there is
        alpha = Image.fromarray(mask * 110).resize(shown.size, Image.Resampling.NEAREST)
        tile.paste(_COLOURS[category % len(_COLOURS)], (2, 17), alpha)
    tags = []
    for (x, y, w, h), category in zip(targets.boxes_xywh_px.tolist(), targets.labels.tolist(), strict=True):
        colour = _COLOURS[category % len(_COLOURS)]
        corners = [2 + x * scale, 17 + y * scale, 2 + (x + w) * scale, 17 + (y + h) * scale]
        if not all(-1e6 < corner < 1e6 for corner in corners):
            continue  # NaN and the like have no place in an image; the title counts them
        left, right = sorted(corners[::2])
        top, bottom = sorted(corners[1::2])
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        tags.append((left, top, colour, shortened(drawable(names[category]), letters, tile_px - 8)))
    for left, top, colour, name in tags:  # above all boxes
        # beside the border too the name stays in sight
        x_text = min(max(left + 3, 3), tile_px - 3 - letters.getlength(name))
        y_text = min(max(top + 1, 18), tile_px - 16)
        around = (x_text - 3, y_text - 1, x_text + letters.getlength(name) + 2, y_text + 13)
        draw.rectangle(around, fill="white", outline=colour)
        draw.text((x_text, y_text), name, fill="black", font=letters)
    drawn_from = Path(row["image"].get("path") or "").name
    title = f"{row['image_id']}  {drawn_from}  {len(targets)} {'object' if len(targets) == 1 else 'objects'}"
    draw.rectangle((0, 0, tile_px, 16), fill="white")
    draw.text((4, 1), shortened(drawable(title), letters, tile_px - 8), fill="black", font=letters)
    return tile


def _wrapped(text: str, width: int) -> str:
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))
