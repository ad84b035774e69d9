"""From the content of label files to classes: by value, by color, or by a threshold."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from hardpatch.data.label_maps import LabelMap
from hardpatch.data.reading import UndecodableImage
from hardpatch.segment.labels import IGNORED, Labels

Map = npt.NDArray[np.uint8]
UNKNOWN = -1
"""Class of a code that must not occur."""


@dataclass(frozen=True)
class LabelReading:
    """Way from the content of label files to classes.

    Args:
        by: what a code is: the ``value`` in the file, or the ``color``, 0xRRGGBB.
        classes: class or :data:`~hardpatch.segment.labels.IGNORED` of each code.
        threshold: value from which on a pixel is of class 1; then ``classes`` do not matter.
    """

    by: Literal["value", "color"]
    classes: dict[int, int]
    threshold: int | None = None

    def __call__(self, label_map: LabelMap) -> Map:
        """Return the class of each pixel or IGNORED, uint8 ``[H, W]``.

        Raises:
            UndecodableImage: for a code that must not occur.
        """
        if self.threshold is not None:
            values = gray_values(label_map)
            return (values >= (1 if label_map.kind == "1-bit" else self.threshold)).astype(np.uint8)
        codes = gray_values(label_map) if self.by == "value" else color_codes(label_map.colors())
        table = self._table
        if codes.dtype != np.uint8:
            codes = codes.astype(np.int64).clip(-1, len(table) - 2)
        classes = table[codes]
        if classes.size and classes.min() < 0:
            raise UndecodableImage(f"a {self.by} in {(classes < 0).sum()} pixels is no class")
        return classes.astype(np.uint8)

    def of(self, code: int, kind: str = "gray") -> int:
        """Return the class of a code in a file of this kind, IGNORED or UNKNOWN."""
        if self.threshold is not None:
            return int(code >= (1 if kind == "1-bit" else self.threshold))
        return self.classes.get(code, UNKNOWN)

    @cached_property
    def _table(self) -> npt.NDArray[np.int16]:
        """Class by code; the last two entries are codes above all and, as index -1, below all."""
        table = np.full(max(256, *self.classes) + 3, UNKNOWN, dtype=np.int16)
        table[[*self.classes]] = [*self.classes.values()]
        return table


def by_value(labels: Labels) -> LabelReading:
    """Read values as they are declared."""
    return LabelReading("value", dict.fromkeys(labels.ignored, IGNORED) | {v: k for k, v in enumerate(labels.values)})


def by_color(labels: Labels) -> LabelReading:
    """Read colors by the table of the classes."""
    ignored = dict.fromkeys(labels.ignored_colors, IGNORED)
    return LabelReading("color", ignored | {color: k for k, color in enumerate(labels.colors)})


def gray_values(label_map: LabelMap) -> npt.NDArray[np.integer]:
    """Return the value of each pixel ``[H, W]``: of a palette the index, of equal color channels any of them.

    Raises:
        UndecodableImage: for colors.
    """
    values = label_map.values
    if label_map.kind != "RGB":
        return values
    if not is_gray(values):
        raise UndecodableImage("has colors, and had none when all was checked")
    return values[..., 0]


def is_gray(colors: npt.NDArray[np.integer]) -> bool:
    """Return whether the three channels ``[..., 3]`` are equal everywhere."""
    return bool((colors[..., :1] == colors).all())


def color_codes(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return ``[...]`` 0xRRGGBB of colors ``[..., 3]``."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def color_text(code: int) -> str:
    """Write 0xRRGGBB as in a color table: "128 0 0"."""
    return f"{code >> 16} {code >> 8 & 255} {code & 255}"
