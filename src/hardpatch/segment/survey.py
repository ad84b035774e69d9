"""One look at every pair of a set: what can be read, which values occur, and whether the sizes agree."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from hardpatch.data.decode import read_header
from hardpatch.data.label_maps import Kind, LabelMap
from hardpatch.data.loader import batch_loader
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.segment.data import SegmentationSet
from hardpatch.segment.label_reading import color_codes, is_gray

WHITE = (255, 65535)
"""Value of the object in masks of 8 and 16 bits that are drawn in black and white."""
MAX_CODES = 4096
"""Values of a file that are kept; a label map has far fewer, so files with more are refused by any of these."""


class Look(NamedTuple):
    """Content of a pair in numbers."""

    kind: Kind
    counts: dict[int, int]
    """pixels of each value, or of each color as 0xRRGGBB if ``kind`` is RGB; at most :data:`MAX_CODES` of them"""
    colors: dict[int, int]
    """color of each index that occurs, if ``kind`` is palette"""
    gray: bool
    """False if ``kind`` is RGB and the channels differ"""
    orientation: int
    """EXIF orientation of the image, 1 to 8"""
    mismatch: str = ""
    """sizes of image and label map, if they differ"""


@dataclass
class Survey:
    """All looks at a set, by index."""

    looks: dict[int, Look] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    """path and reason of each pair that cannot be read"""


def survey(
    pairs: SegmentationSet,
    reading: Reading,
    workers: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Survey:
    """Decode every image and every label map once.

    Args:
        pairs: the set.
        reading: channels, type and range of the images.
        workers: processes that decode; 0 decodes in this one.
        progress: called with the number of pairs done and of all.
    """
    found = Survey()
    for i, look in enumerate(batch_loader(_Looks(pairs, reading), None, workers)):
        if isinstance(look, str):
            found.unreadable[i] = look
        else:
            found.looks[i] = look
        progress(i + 1, len(pairs))
    return found


class _Looks(Dataset[Look | str]):
    """A look at each pair, or path and reason if it cannot be read."""

    def __init__(self, pairs: SegmentationSet, reading: Reading) -> None:
        self.pairs, self.reading = pairs, reading

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Look | str:
        try:
            image, content = self.pairs.image(i, self.reading), self.pairs.content(i)
        except UndecodableImage as error:
            return str(error)
        orientation = read_header(self.pairs.images[i].read_bytes(), self.reading.max_pixels).orientation
        mismatch = _mismatch(image.shape[:2], content.values.shape[:2], orientation)
        return _look(content, orientation, mismatch, self.pairs.labels.threshold)


def _look(content: LabelMap, orientation: int, mismatch: str, threshold: int | None) -> Look:
    values = color_codes(content.values.astype(np.uint8)) if content.kind == "RGB" else content.values
    if threshold is not None and content.kind == "gray":  # gray masks may have 65536 values, of which four matter
        between = np.where(values < threshold, 1, threshold).astype(values.dtype)
        values = np.where(np.isin(values, (0, *WHITE)), values, between)
    codes, counts = _count(values)
    colors = (
        {} if content.palette is None else dict(zip(codes, color_codes(content.palette[codes]).tolist(), strict=True))
    )
    gray = content.kind != "RGB" or is_gray(content.values)
    kept = dict(zip(codes[:MAX_CODES], counts[:MAX_CODES], strict=True))
    return Look(content.kind, kept, colors, gray, orientation, mismatch)


def _count(values: npt.NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Return the values that occur, and how often."""
    if values.dtype == np.uint8:  # much faster than sorting
        all_counts = np.bincount(values.ravel(), minlength=256)
        codes = np.flatnonzero(all_counts)
        return codes.tolist(), all_counts[codes].tolist()
    codes, counts = np.unique(values, return_counts=True)
    return codes.tolist(), counts.tolist()


def _mismatch(image: tuple[int, ...], label_map: tuple[int, ...], orientation: int) -> str:
    if image == label_map:
        return ""
    text = f"{image[1]} x {image[0]} and {label_map[1]} x {label_map[0]} pixels"
    if orientation > 1 and image == label_map[::-1]:
        text += (
            f"; the image has the EXIF orientation {orientation}, and its label map fits it only turned the other way: "
            "turn the map, or turn the image and remove its orientation"
        )
    return text
