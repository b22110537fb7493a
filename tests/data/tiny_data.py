"""Tiny data sets in every format, written into tmp_path: three pictures of 40 x 30 pixels, two classes."""

from pathlib import Path

from PIL import Image

# file stem -> its objects, (class name, xywh in pixels); "empty" has none
SCENES = {
    "a": [("cat", (4.0, 6.0, 10.0, 12.0)), ("dog", (20.0, 3.0, 15.0, 20.0))],
    "b": [("dog", (0.0, 0.0, 40.0, 30.0))],
    "empty": [],
}
SIZE_WH = (40, 30)


def write_picture(path: Path, colour: int = 0, size_wh: tuple[int, int] = SIZE_WH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, (colour, 255 - colour, 90)).save(path)
    return path


def write_pictures(folder: Path, first_colour: int = 0, suffix: str = ".png") -> None:
    for index, stem in enumerate(SCENES):
        write_picture(folder / f"{stem}{suffix}", first_colour + 20 * index)


def coco_content(ids=(7, 3)) -> dict:
    """COCO of SCENES; `ids` are those of cat and dog, by default with gaps and not in the order of the list."""
    number = dict(zip(("cat", "dog"), ids, strict=True))
    content = {
        "images": [
            {"id": 100 + index, "file_name": f"{stem}.png", "width": SIZE_WH[0], "height": SIZE_WH[1]}
            for index, stem in enumerate(SCENES)
        ],
        "annotations": [],
        "categories": [{"id": one, "name": name} for name, one in number.items()],
    }
    for index, objects in enumerate(SCENES.values()):
        for name, box in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + index,
                    "category_id": number[name],
                    "bbox": list(box),
                    "area": box[2] * box[3] / 2,  # as a mask's would be
                    "iscrowd": 0,
                }
            )
    return content


def voc_xml(stem: str, objects, size_wh=SIZE_WH, difficult: int = 0) -> str:
    lines = ["<annotation>", f"<filename>{stem}.png</filename>"]
    if size_wh:
        lines.append(f"<size><width>{size_wh[0]}</width><height>{size_wh[1]}</height><depth>3</depth></size>")
    for name, (x, y, w, h) in objects:
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        lines += ["<object>", f"<name>{name}</name>", f"<difficult>{difficult}</difficult>", "<bndbox>"]
        lines += [f"<{key}>{value:g}</{key}>" for key, value in corners.items()]
        lines += ["</bndbox>", "</object>"]
    return "\n".join([*lines, "</annotation>"])
