"""View of a frozen encoder on images: their size, and the blocks whose outputs are the features."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.models.encoder import patch_grid
from hardpatch.processes import is_first

log = logging.getLogger("hardpatch")

Size = int | Sequence[int]
"""Side of images, or height and width, in pixels."""


class View(NamedTuple):
    """Image size in pixels, and blocks."""

    image_size: tuple[int, int]
    """(height, width)"""
    blocks: tuple[int, ...] = ()
    """blocks whose tokens, after the last norm, are pooled and put one after the other; empty for the last one"""

    def values(self) -> dict[str, list[int]]:
        """Return plain values."""
        return {"image_size": list(self.image_size), "blocks": list(self.blocks)}


def view_of(model: HPM, image_size: Size | None = None, blocks: Sequence[int] = ()) -> View:
    """Return the view of a model, and say what differs from its training.

    Args:
        model: with an encoder.
        image_size: of the images that it shall see; None for that of its training.
        blocks: numbers from 1, or from -1 for the last one downwards, in any order; empty for the last one.

    Raises:
        UserError: if the size is no multiple of the patch size, or the encoder lacks a block.
    """
    encoder = model.host.encoder
    size = model.image_size
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2:
            raise UserError(f"--image_size: expected a side, or height and width, got {' '.join(map(str, sides))}")
        try:
            grid = patch_grid((sides[0], sides[1]), encoder.patch_size)
        except ValueError:
            raise UserError(
                f"--image_size: expected multiples of the patch size {encoder.patch_size}, got {sides[0]} x {sides[1]}"
            ) from None
        size = (sides[0], sides[1])
        if grid != encoder.grid and is_first():
            (rows, columns), (old_rows, old_columns) = grid, encoder.grid
            log.info(
                "--image_size %d %d: positions of %d x %d patches are resized to %d x %d",
                *(*size, old_rows, old_columns, rows, columns),
            )
    return View(size, _resolved(blocks, len(encoder.blocks)))


def _resolved(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return increasing numbers from 1."""
    wrong = next((number for number in blocks if not 1 <= abs(number) <= depth), None)
    if wrong is not None:
        raise UserError(f"--blocks: expected numbers from 1 to {depth}, or -1 for the last to -{depth}, got {wrong}")
    return tuple(sorted({number if number > 0 else depth + 1 + number for number in blocks}))
