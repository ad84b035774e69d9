"""Pictures as part of a page, each with its text."""

import base64
import io
from html import escape
from typing import NamedTuple

from hardpatch import figures
from hardpatch.printable import printable

STYLE = """
.hp-row { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 180px)); gap: 12px; margin: 0 0 12px; }
.hp-row figure { margin: 0; }
.hp-row img { width: 100%; height: auto; display: block; border-radius: 4px; image-rendering: pixelated; }
.hp-row figcaption { font-size: 13px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
.hp-note { margin: 0 0 8px; overflow-wrap: anywhere; }
h2.hp { font-size: 17px; margin: 8px 0 6px; overflow-wrap: anywhere; }
.or, .min_value, .max_value { color: inherit !important; } /* gradio's have too little contrast */
"""


class Figure(NamedTuple):
    """A picture, what stands below it, and what a screen reader says."""

    image: figures.Image
    caption: str
    text: str


def row(shown: list[Figure]) -> str:
    """Return pictures side by side, as HTML."""
    return f'<div class="hp-row">{"".join(map(_figure, shown))}</div>'


def heading(text: str) -> str:
    """Return a heading."""
    return f'<h2 class="hp">{escape(printable(text))}</h2>'


def note(text: str) -> str:
    """Return a line of text."""
    return f'<p class="hp-note">{escape(printable(text))}</p>'


def _figure(figure: Figure) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(figures.enlarge(figures.to_rgb(figure.image))).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    caption, text = (escape(printable(words), quote=True) for words in (figure.caption, figure.text))
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{caption}</figcaption></figure>'
