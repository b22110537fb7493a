"""Self-contained HTML pages: nothing is fetched, no script runs but the page's own, every text is escaped."""

import base64
import hashlib
import html
import io
from collections.abc import Sequence

from PIL import Image

_COLUMN_PX = 560  # of plots side by side

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --paper: #fff; --line: #d5d9e2; --soft: #f4f6fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --paper: #14171f; --line: #353b4a; --soft: #1d2230; } }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 6vw, 2rem); line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll tr { background: var(--paper); }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: inherit; }
@media (max-width: 30rem) {
  th, td { padding: .25rem .3rem; font-size: .9rem; }
  th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; }
  .scroll th:first-child, .scroll td:first-child { min-width: 5rem; white-space: normal; }
}
figure { margin: 0; padding: .5rem; background: var(--soft); border-radius: .5rem; }
figure img { width: 100%; height: auto; display: block; border-radius: .3rem; }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .plot img { filter: invert(.92) hue-rotate(180deg); } }
"""


def html_page(title: str, body: str, style: str = "", script: str = "") -> str:
    """The page around a `body` of HTML. Its security policy lets no other script run, and nothing be fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    end = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n{body}\n{end}</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, which are escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def html_image(address: str, alt: str) -> str:
    """An image at a `data_address`."""
    return f'<img alt="{html.escape(alt)}" src="{address}">'


def html_plot(image: Image.Image, caption: str, width_px: int) -> str:
    """A plot on white, which is inverted on a dark page (its hues stay); a narrower page scrolls within `width_px`."""
    shown = html_image(data_address(image.convert("RGB"), "png", optimize=True), caption)
    kind = "plot wide" if width_px > _COLUMN_PX else "plot"
    return (
        f'<figure class="{kind}"><div class="scroll"><div style="min-width:{width_px}px">{shown}</div></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def data_address(image: Image.Image, kind: str = "jpeg", **options) -> str:
    """The image itself as an address: "data:image/...". `options` are those of PIL's writer of this kind."""
    buffer = io.BytesIO()
    options = {"quality": 85} | options if kind == "jpeg" else options
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
