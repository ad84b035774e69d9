"""Order of training on Parquet files that are larger than the memory: every row group is read once an epoch.

Row groups are permuted, a window of them at a time is held in memory, and the images of a window are shuffled. Like any
order it is computed from seed and epoch, so that it can begin anywhere.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hardpatch.choices import ShuffleName
from hardpatch.data.parquet import CACHED_BYTES
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

FEW_IMAGES = 64
"""Images of a row group up to which single images are read at random, unless the settings say otherwise."""


class RowGroups(NamedTuple):
    """Row groups of the images of a source, and how many of them are mixed."""

    ends: npt.NDArray[np.int64]
    """last image of each, plus one"""
    window: int

    def permutation(self, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """Draw an order of all images in which those of a window of row groups are neighbors."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        order = torch.randperm(len(self.ends), generator=generator).numpy()
        sizes = (self.ends - starts)[order]
        first = np.cumsum(sizes) - sizes  # position of each group's first image, before its window is shuffled
        images = np.arange(self.ends[-1]) + np.repeat(starts[order] - first, sizes)
        windows = np.repeat(np.arange(len(order)) // self.window, sizes)
        noise = torch.rand(len(images), generator=generator, dtype=torch.float64).numpy()
        return images[np.lexsort((noise, windows))]


def choose_order(source: Source, shuffle: ShuffleName, window: int) -> tuple[RowGroups | None, str]:
    """Return the row groups by which the images are to be shuffled, None to shuffle all images, and a line on that.

    Args:
        source: the images.
        shuffle: `auto` takes row groups if the files are not held in memory and each has more than :data:`FEW_IMAGES`
            images.
        window: row groups that are mixed; fewer if they take too much memory.

    Raises:
        UserError: for `row_groups` if the source has none.
    """
    found: Any = getattr(source, "row_groups", None)
    if found is None:
        if shuffle == "row_groups":
            raise UserError(
                "data.shuffle: expected samples or auto for these images, got row_groups, which only Parquet files "
                "have that are neither decoded into memory nor put together from bands or pages"
            )
        return None, ""
    each = len(source) / len(found.ends)
    if shuffle == "samples" or (shuffle == "auto" and (not found.on_disk or each <= FEW_IMAGES)):
        return None, ""
    fitting = max(1, CACHED_BYTES // 2 // max(1, found.most_bytes))
    mixed = min(window, fitting)
    getattr(source, "keep_row_groups")(mixed)  # noqa: B009 (only some sources have it)
    less = f" ({window} would take more than {CACHED_BYTES // 2:,} bytes)" if mixed < window else ""
    note = (
        f"data.shuffle {shuffle}: by row groups of {each:.0f} images, {mixed} of {len(found.ends)} mixed at a time"
        f"{less}; each process that decodes reads every group once an epoch"
    )
    return RowGroups(found.ends, mixed), note
