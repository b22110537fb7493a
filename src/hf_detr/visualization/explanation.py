"""One image explained on one self-contained HTML page: what each detection looked at, layer by layer.

The page's script moves what is there between the layers and shows the attention of the box that is pointed at; all it
shows is in the page.
"""

import html
import json
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from hf_detr.boxes import cxcywh_to_xyxy, iou
from hf_detr.wording import counted, printable

from .attention import Recording, attention_from_point, deciding_layers, layer_answers
from .canvas import ImageLike, as_rgb
from .detections import class_color
from .heat import OPACITY, heat_image
from .page import data_address, html_image, html_page, html_plot

_MOST_DETECTIONS, _CROWDED = 50, 12  # more boxes are named one at a time
_IMAGE_PX, _HEAT_PX = 1280, 128  # long sides; attention is smooth, and the browser enlarges it
_NO_POINTS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # in place of detections

_STYLE = """
.look { display: grid; gap: 1rem; align-items: start; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 60rem) { .look { grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); } }
.stage { position: relative; overflow: hidden; border-radius: .3rem; background: var(--soft); }
.stage > img { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.stage > img[hidden] { display: none; }
.box, .point { position: absolute; padding: 0; cursor: pointer; background: none; }
.box { border: 2px solid var(--mark); box-shadow: 0 0 0 1px #000a;
  transition: left .2s, top .2s, width .2s, height .2s; }
.box.unsure { border-style: dashed; }
.box span { position: absolute; left: -2px; bottom: 100%; padding: 0 .3rem; background: #000c; color: #fff;
  font: .75rem/1.35 system-ui, sans-serif; white-space: nowrap; pointer-events: none; }
.box.top span { bottom: auto; top: 0; }
.box.right span { left: auto; right: -2px; }
.chosen-one .box:not(.chosen) { opacity: .35; }
.chosen-one .box:not(.chosen) span, .crowded .box:not(.chosen) span { display: none; }
.point { width: 1.5rem; height: 1.5rem; margin: -.75rem; border: 3px solid #fff; border-radius: 50%;
  background: #0072b2; box-shadow: 0 0 0 2px #000a; }
.point.chosen { background: #d55e00; }
.layers { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: 1rem 0; }
.layers button { font: inherit; min-width: 2.75rem; min-height: 2.75rem; border: 1px solid var(--line);
  border-radius: .4rem; background: var(--soft); color: var(--ink); cursor: pointer; }
.layers button[aria-pressed=true] { background: #1f6fb2; border-color: #1f6fb2; color: #fff; }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 1px; }
tbody tr { cursor: pointer; }
tbody tr.chosen { background: var(--soft); }
tbody button { all: unset; display: inline-block; min-height: 1.5rem; cursor: pointer; }
tbody button:focus-visible { outline: 3px solid #e69f00; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: .2rem;
  background: var(--mark); box-shadow: 0 0 0 1px #0006; }
.said { min-height: 3em; margin: .5rem 0; }
"""

_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector) => [...document.querySelectorAll(selector)];
const boxes = all(".box"), rows = all("tr[data-number]"), points = all(".point"), layers = all(".layers button");
const heat = document.getElementById("heat"), said = document.getElementById("said");
const fromPoint = document.getElementById("heat-of-point");
let layer = data.layers - 1, chosen = -1;
function put(image, address) { image.hidden = !address; if (address) image.src = address; }
function show() {
  layers.forEach((button, number) => button.setAttribute("aria-pressed", number === layer));
  boxes.forEach((box, number) => {
    const step = data.detections[number].steps[layer], [left, top, width, height] = step.box;
    Object.assign(box.style, { left: left + "%", top: top + "%", width: width + "%", height: height + "%" });
    box.firstElementChild.textContent = step.answer;
    box.classList.toggle("unsure", !step.sure);
    box.classList.toggle("top", top < 7);
    box.classList.toggle("right", left + width / 2 > 60);
    box.classList.toggle("chosen", number === chosen);
  });
  rows.forEach((row, number) => row.classList.toggle("chosen", number === chosen));
  const step = chosen < 0 ? null : data.detections[chosen].steps[layer];
  document.getElementById("stage").classList.toggle("chosen-one", chosen >= 0);
  put(heat, step && step.heat);
  said.textContent = step ? "Layer " + (layer + 1) + ", query " + data.detections[chosen].query + ": " + step.answer +
    ", IoU " + step.iou.toFixed(2) + " with the box in the end." : said.dataset.empty;
}
function choose(number) { chosen = number; show(); }
for (const elements of [boxes, rows]) elements.forEach((element, number) => {
  element.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") choose(number); });
  element.addEventListener("focusin", () => choose(number));
  element.addEventListener("click", () => choose(number));
});
layers.forEach((button, number) => button.addEventListener("click", () => { layer = number; show(); }));
function choosePoint(number) {
  points.forEach((point, other) => point.classList.toggle("chosen", other === number));
  put(fromPoint, data.points[number]);
}
points.forEach((point, number) => {
  point.addEventListener("pointerenter", () => choosePoint(number));
  point.addEventListener("focus", () => choosePoint(number));
  point.addEventListener("click", () => choosePoint(number));
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(-1); });
document.getElementById("stage").addEventListener("click", (event) => {
  if (!event.target.closest(".box")) choose(-1);
});
for (const again of all(".again")) again.src = document.querySelector("#stage > img").src;
show();
if (points.length) choosePoint(0);
"""


def explanation_page(
    recording: Recording,
    image: ImageLike,
    id2label: Mapping[int, str] | None = None,
    *,
    title: str = "image",
    threshold: float = 0.5,
    points: Sequence[tuple[float, float]] = (),
    queries: Image.Image | None = None,
) -> str:
    """The page as text.

    `image`: the one that was recorded, as `draw_detections` takes it. Detections are those of the last layer with a
    score above the `threshold`, the 50 surest. `points`: (x, y) in [0, 1] of the image whose attention in the encoder
    is shown; by default the centres of the detections. `queries`: what `draw_queries` gives. Raises ValueError for
    points outside of the image.
    """
    rgb = as_rgb(image)
    names = {int(label): printable(str(name)) for label, name in (id2label or {}).items()}
    answers, scores = layer_answers(recording.logits, threshold)  # (L, Q)
    found = [query for query in scores[-1].argsort(descending=True).tolist() if answers[-1, query] >= 0]
    shown = found[:_MOST_DETECTIONS]
    if not points:
        points = [tuple(recording.boxes_cxcywh[-1, query, :2].tolist()) for query in shown[:8]] or _NO_POINTS
    heat_wh = _fitted(rgb.size, _HEAT_PX)
    detections = [_detection(recording, query, names, threshold, heat_wh) for query in shown]
    has_encoder = recording.encoder_attention is not None
    of_points = [_heat(attention_from_point(recording, x, y), heat_wh) for x, y in points] if has_encoder else []
    content = {"layers": len(scores), "detections": detections, "points": of_points}
    # inside a script element only "</" and "<!--" mean anything
    content_json = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")

    reduced = rgb.resize(_fitted(rgb.size, _IMAGE_PX)) if max(rgb.size) > _IMAGE_PX else rgb
    shown_image = html_image(data_address(reduced), "the image")
    labels = answers[-1, shown].tolist()
    about = f"{rgb.width:,} x {rgb.height:,} pixels, {counted(len(found), 'detection')} above {threshold:g}"
    about += f", the {len(shown)} surest of which are shown" if len(shown) < len(found) else ""
    stage = _stage("stage", rgb, shown_image, "heat", _boxes(detections, labels), len(shown) > _CROWDED)
    parts = [
        f"<h1>{html.escape(printable(title))}</h1><p>{about}.</p>",
        "<h2>Detections</h2>",
        _layer_buttons(len(scores)),
        f'<div class="look"><div>{stage}',
        f'<p id="said" class="said" aria-live="polite" data-empty="{_HINT}">{_HINT}</p></div>',
        _decisions(recording, shown, labels, names, threshold) if shown else "<p>Lower the threshold to see some.</p>",
        "</div>",
    ]
    if has_encoder:
        places = [f"left:{100 * x:.2f}%;top:{100 * y:.2f}%" for x, y in points]
        buttons = "".join(
            f'<button class="point" style="{place}" aria-label="point {number}"></button>'
            for number, place in enumerate(places, start=1)
        )
        again = '<img class="again" alt="the image">'
        parts += [
            "<h2>The encoder, from a point</h2>",
            "<p>What the feature at a point took from the others, in the last encoder layer: often one object already "
            "stands apart here, before any query has looked. Choose a point.</p>",
            f'<div class="look">{_stage("of-points", rgb, again, "heat-of-point", buttons)}</div>',
        ]
    if queries is not None:
        parts += [
            "<h2>What each query has learnt</h2>",
            html_plot(
                queries,
                "The centre of its box in every image, whether or not it is an object: small ones (below a 64th of the "
                "image), wide ones, tall ones. The queries that are surest on average.",
                608,
            ),
        ]
    parts.append(f'<script type="application/json" id="data">{content_json}</script>')
    return html_page(printable(title), "\n".join(parts), _STYLE, _SCRIPT)


_HINT = "Point at a box or a row, or tap it, to see what it took from where: the brighter, the more."


def _fitted(size_wh: tuple[int, int], longest_px: int) -> tuple[int, int]:
    scale = longest_px / max(size_wh)
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def _heat(attention: Tensor, size_wh: tuple[int, int]) -> str:
    """A translucent image of attention (H, W)."""
    return data_address(heat_image(attention, size_wh), "png", transparency=OPACITY, optimize=True)


def _detection(
    recording: Recording, query: int, names: Mapping[int, str], threshold: float, heat_wh: tuple[int, int]
) -> dict:
    """A query's box (left, top, width, height in percent of the image), answer and attention, for every layer."""
    corners = cxcywh_to_xyxy(recording.boxes_cxcywh[:, query])
    overlaps = iou(corners, corners[-1:]).tolist()
    corners = (100 * corners).clamp(0, 100)
    scores, labels = recording.logits[:, query].softmax(-1)[..., :-1].max(-1)
    steps = []
    for number, (left, top, right, bottom) in enumerate(corners.tolist()):
        score, label = scores[number].item(), labels[number].item()
        steps.append(
            {
                "box": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "answer": f"{names.get(label, str(label))} {score:.2f}",
                "sure": score > threshold,
                "iou": round(overlaps[number], 3),
                "heat": _heat(recording.cross_attention[number, query], heat_wh),
            }
        )
    return {"query": query, "steps": steps}


def _color(label: int) -> str:
    return "--mark:rgb({},{},{})".format(*class_color(label))


def _stage(name: str, rgb: Image.Image, image: str, heat: str, buttons: str, is_crowded: bool = False) -> str:
    """The image with a layer of attention and buttons on it, no higher than a window has room for what is around."""
    shape = f"aspect-ratio:{rgb.width}/{rgb.height};max-width:calc(62vh * {rgb.width / rgb.height:.4f})"
    kind = "stage crowded" if is_crowded else "stage"
    layer = f'<img id="{heat}" alt="attention" hidden>'
    return f'<div class="{kind}" id="{name}" style="{shape}">{image}{layer}{buttons}</div>'


def _boxes(detections: Sequence[Mapping], labels: Sequence[int]) -> str:
    """A button for each box as it is in the end, the largest first, so that all can be pointed at."""
    buttons = []
    for number, (detection, label) in enumerate(zip(detections, labels, strict=True)):
        last = detection["steps"][-1]
        left, top, width, height = last["box"]
        place = f"left:{left}%;top:{top}%;width:{width}%;height:{height}%;z-index:{10_000 - round(width * height)}"
        answer = html.escape(last["answer"])
        buttons.append(
            f'<button class="box" data-number="{number}" style="{_color(label)};{place}"><span>{answer}</span></button>'
        )
    return "".join(buttons)


def _layer_buttons(count: int) -> str:
    buttons = "".join(
        f'<button aria-pressed="{str(number == count).lower()}">{number}</button>' for number in range(1, count + 1)
    )
    return f'<div class="layers" role="group" aria-label="decoder layer">Decoder layer {buttons}</div>'


def _decisions(
    recording: Recording, shown: Sequence[int], labels: Sequence[int], names: Mapping[int, str], threshold: float
) -> str:
    decisions = deciding_layers(recording, threshold)
    rows = []
    for number, (query, label) in enumerate(zip(shown, labels, strict=True)):
        score = recording.logits[-1, query].softmax(-1)[label]
        name = html.escape(names.get(label, str(label)))
        first = f'<button style="{_color(label)}"><span class="swatch"></span>{name}</button>'
        cells = [first, f"{score:.2f}", *(str(int(layers[query])) for layers in decisions)]
        rows.append(f'<tr data-number="{number}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("class", "score", "class", "IoU &ge; 0.5", "IoU &ge; 0.75"))
    group = '<tr><th colspan="2"></th><th colspan="3">decided in layer</th></tr>'
    return (
        f'<div><div class="scroll"><table><thead>{group}<tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div><p>The layer from which on the class stays, and the box has that IoU with the last layer's.</p></div>"
    )
