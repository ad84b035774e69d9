"""Pages of a gallery: tuples of panels side by side, as in the paper's Figures 2, 4, S1 and S2."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hardpatch.figures import RED_IS_HIGH, Image, Sheet, color_bar, enlarge, to_rgb

NAME_LENGTH = 20
"""Characters of a file's name that fit below a panel."""


class GalleryTuple(NamedTuple):
    """One image of a :func:`gallery_page`: its panels from left to right."""

    pictures: Sequence[Image]
    """``[H, W, C]``, all of one shape"""
    captions: Sequence[str]
    """up to two lines below each panel, empty for none"""


def gallery_page(tuples: Sequence[GalleryTuple], titles: Sequence[str], per_row: int, footer: str = "") -> Sheet:
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
            left, top = page.corner(number, panel)
            page.sheet.place(to_rgb(enlarge(picture)), left, top, page.WIDTH, page.height)
            if number < per_row:
                page.sheet.write(titles[panel], left + page.WIDTH / 2, top - 4 / 72, 8, "ms")
            page.sheet.write(caption, left, top + page.height + 2 / 72, 7)
    page.draw_high_and_low(footer)
    return page.sheet


class _Page:
    """A sheet with cells at fixed positions, so that nothing overlaps.

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
        self.per_row, self.height = min(per_row, tuples), self.WIDTH * aspect
        self.tuple_width = panels * (self.WIDTH + self.GAP) - self.GAP
        width = self.per_row * (self.tuple_width + self.TUPLE_GAP) - self.TUPLE_GAP
        self.row_height = self.height + self.CAPTION_GAP + lines * self.LINE
        self.bottom = self.TITLE + math.ceil(tuples / per_row) * self.row_height
        self.middle = self.MARGIN + width / 2
        self.sheet = Sheet(2 * self.middle, self.bottom + self.FOOT, dpi=130)

    def corner(self, number: int, panel: int) -> tuple[float, float]:
        """Left and top edge of a panel of a tuple."""
        row, column = divmod(number, self.per_row)
        left = self.MARGIN + column * (self.tuple_width + self.TUPLE_GAP) + panel * (self.WIDTH + self.GAP)
        return left, self.TITLE + row * self.row_height

    def draw_high_and_low(self, footer: str) -> None:
        """Draw a color bar from the lowest loss (blue) to the highest (red) below all rows, and a line below it."""
        top, half = self.bottom + 0.05, self.BAR_WIDTH / 2
        self.sheet.place(color_bar(RED_IS_HIGH), self.middle - half, top, self.BAR_WIDTH, self.BAR_HEIGHT)
        self.sheet.write("low loss", self.middle - half - 4 / 72, top + self.BAR_HEIGHT / 2, 8, "rm")
        self.sheet.write("high loss", self.middle + half + 4 / 72, top + self.BAR_HEIGHT / 2, 8, "lm")
        self.sheet.write(footer, self.middle, top + self.BAR_HEIGHT + 2 / 72, 8, "ma")


def two_decimals(value: float) -> str:
    """Write a number for a caption, without a minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"
