"""Pages of a gallery: tuples of panels side by side, as in the paper's Figures 2, 4, S1 and S2."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hardpatch.figures import INK, RED_IS_HIGH, Image, enlarge, place, to_rgb, write_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_LENGTH = 20
"""Characters of a file's name that fit below a panel."""


class GalleryTuple(NamedTuple):
    """One image of a :func:`gallery_page`: its panels from left to right."""

    pictures: Sequence[Image]
    """``[H, W, C]``, all of one shape"""
    captions: Sequence[str]
    """up to two lines below each panel, empty for none"""


def gallery_page(tuples: Sequence[GalleryTuple], titles: Sequence[str], per_row: int, footer: str = "") -> "Figure":
    """Draw tuples of panels, and a color bar below them on which red is high.

    Args:
        tuples: all with as many panels as there are ``titles``.
        titles: of the panels, above the first row.
        per_row: tuples in a row.
        footer: a line below the color bar.

    Raises:
        ValueError: if there is no tuple.
    """
    if not tuples:
        raise ValueError("tuples: expected at least one image, got none")
    height, width = tuples[0].pictures[0].shape[:2]
    lines = max(caption.count("\n") + 1 for _, captions in tuples for caption in captions)
    page = _Page(len(tuples), len(titles), per_row, height / width, lines)
    for number, (pictures, captions) in enumerate(tuples):
        for panel, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            axes = page.cell(number, panel)
            axes.imshow(to_rgb(enlarge(picture)), aspect="auto")
            axes.set_axis_off()
            if number < per_row:
                axes.set_title(titles[panel], fontsize=8, color=INK, pad=4)
            write_caption(axes, caption, 7)
    _draw_high_and_low(page.bar(), footer)
    return page.figure


class _Page:
    """A figure with cells at fixed positions, so that nothing overlaps.

    Args:
        tuples: number of tuples.
        panels: in each tuple.
        per_row: tuples in a row.
        aspect: height of a panel over its width.
        lines: of the captions.
    """

    # inches
    WIDTH, MARGIN, GAP, TUPLE_GAP, CAPTION_GAP, LINE, TITLE, FOOT = 1.4, 0.12, 0.05, 0.22, 0.14, 0.12, 0.26, 0.42
    BAR_WIDTH, BAR_HEIGHT = 1.0, 0.1

    def __init__(self, tuples: int, panels: int, per_row: int, aspect: float, lines: int) -> None:
        from matplotlib.figure import Figure

        self.per_row, self.height = min(per_row, tuples), self.WIDTH * aspect
        self.tuple_width = panels * (self.WIDTH + self.GAP) - self.GAP
        width = self.per_row * (self.tuple_width + self.TUPLE_GAP) - self.TUPLE_GAP
        self.row_height = self.height + self.CAPTION_GAP + lines * self.LINE
        self.bottom = self.TITLE + math.ceil(tuples / per_row) * self.row_height
        size = (2 * self.MARGIN + width, self.bottom + self.FOOT)
        self.figure = Figure(figsize=size, dpi=130, facecolor="white")

    def cell(self, number: int, panel: int) -> "Axes":
        """Axes of a panel of a tuple."""
        row, column = divmod(number, self.per_row)
        left = self.MARGIN + column * (self.tuple_width + self.TUPLE_GAP) + panel * (self.WIDTH + self.GAP)
        return place(self.figure, left, self.TITLE + row * self.row_height, self.WIDTH, self.height)

    def bar(self) -> "Axes":
        """Axes of the color bar, below all rows."""
        left = (self.figure.get_size_inches()[0] - self.BAR_WIDTH) / 2
        return place(self.figure, left, self.bottom + 0.05, self.BAR_WIDTH, self.BAR_HEIGHT)


def two_decimals(value: float) -> str:
    """Write a number for a caption, without a minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _draw_high_and_low(axes: "Axes", footer: str) -> None:
    """Draw a color bar from the lowest loss (blue) to the highest (red), and a line below it."""
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=RED_IS_HIGH)
    axes.set_axis_off()
    for text, x, gap, alignment in (("low loss", 0, -4, "right"), ("high loss", 1, 4, "left")):
        axes.annotate(
            text,
            (x, 0.5),
            xycoords="axes fraction",
            xytext=(gap, 0),
            textcoords="offset points",
            ha=alignment,
            va="center",
            fontsize=8,
            color=INK,
        )
    write_caption(axes, footer, centered=True)
