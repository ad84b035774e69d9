"""Curves as inline SVG whose colors follow the page, light or dark."""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from hardpatch.page.thin import Curve

WIDTH, HEIGHT = 340.0, 176.0
"""Size of a chart in points, which are the pixels of a narrow page."""
COLORS, DASHES = 6, 3
"""Colors of lines (``--c0`` and so on in the style sheet); further lines are dashed, then dotted."""
INK, GRID = "#0a0b0c", "#0a0b0d"
"""Colors that stand for those of the page until the drawing is done; no other color of a drawing is near them."""
LINE = "#0a0b1{}"
STYLES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("solid", (0, (5.0, 2.5)), (0, (1.2, 1.8)))
FEW = 20
"""Points of a curve that are also marked one by one."""

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"


class Line(NamedTuple):
    """One curve of a chart."""

    name: str
    curve: Curve
    number: int
    """chooses color and dashes"""

    @property
    def color(self) -> int:
        """Number of the color."""
        return self.number % COLORS

    @property
    def dashes(self) -> int:
        """Number of the kind of line: solid, dashed, dotted."""
        return self.number // COLORS % DASHES


def chart(lines: Sequence[Line], label: str, key: str) -> str:
    """Draw curves against the step and return an ``<svg>`` element.

    Args:
        lines: the curves.
        label: text for those who do not see it.
        key: a word that no other chart of the page has, for the ids in it.

    Raises:
        ValueError: if there is no line.
    """
    if not lines:
        raise ValueError("lines: expected at least one, got none")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "path.simplify": False, "svg.hashsalt": key}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0.135, 0.14, 0.845, 0.82))
        for number, line in enumerate(lines):
            x, y = line.curve
            axes.plot(
                *(x, y),
                color=LINE.format(line.color),
                linestyle=STYLES[line.dashes],
                linewidth=1.5,
                marker="o" if len(x) <= FEW else "",
                markersize=3,
                clip_on=False,
                gid=f"line{number}",
            )
        axes.margins(x=0.01)
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)
        axes.locator_params(axis="both", nbins=5)
        axes.locator_params(axis="x", integer=True)
        axes.xaxis.set_major_formatter(_short)
        axes.yaxis.set_major_formatter("{x:.4g}")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), lines, label, key)


def _short(value: float, _position: float) -> str:
    """Return a step as it stands at the axis: 1500 is 1.5k."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _inline(text: str, lines: Sequence[Line], label: str, key: str) -> str:
    """Return matplotlib's drawing as an element of a page: no addresses, the page's colors, short numbers."""
    root = ElementTree.fromstring(text)
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(SVG)
        if element.tag in ("metadata", "style", "clipPath"):
            parents[element].remove(element)
            continue
        ident = element.attrib.pop("id", "")
        if found := re.fullmatch(r"line(\d+)", ident):
            title = ElementTree.Element("title")
            title.text = lines[int(found[1])].name
            element.insert(0, title)
        elif parents.get(element) is not None and parents[element].tag == "defs":
            element.set("id", f"{key}-{ident}")
        if (link := element.attrib.pop(f"{XLINK}href", None)) is not None:
            element.set("href", f"#{key}-{link.removeprefix('#')}")
        element.attrib.pop("clip-path", None)
        if "d" in element.attrib:
            element.set("d", _rounded(element.get("d", "")))
        if "style" in element.attrib:
            element.set("style", _colored(element.get("style", "")))
        if element.tag == "text":
            element.set("style", re.sub(r"font-family: [^;]*; ?", "", element.get("style", "")))
    root.attrib = {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(path: str) -> str:
    """Return a path with one decimal, a tenth of a pixel."""
    short = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", short.strip())


def _colored(style: str) -> str:
    style = style.replace(INK, "var(--soft)").replace(GRID, "var(--rule)")
    return re.sub(LINE.format(r"(\d)"), r"var(--c\1)", style)
