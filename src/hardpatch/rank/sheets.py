"""Contact sheets: pictures in rows, each with a caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hardpatch import figures
from hardpatch.data.augment import EvalTransform
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.files import atomic_path
from hardpatch.measure.score_files import shown_channels
from hardpatch.methods.hpm import HPM
from hardpatch.models.pixels import to_bytes

SIDE = 192
"""Least side of a picture, in pixels."""
WIDTH, GAP, MARGIN, CAPTION, TITLE = 1.7, 0.12, 0.15, 0.42, 0.55  # inches


class Cell(NamedTuple):
    """A picture and the two lines below it."""

    picture: figures.Image
    name: str
    value: str


class Pictures:
    """Pictures of images as a model sees them, but sharper where the files are larger.

    Args:
        model: whose crop and channels are shown.
        source: images of any size.
        reading: of the images.
    """

    def __init__(self, model: HPM, source: Source, reading: Reading) -> None:
        self.model, self.source, self.reading = model, source, reading
        factor = -(-SIDE // min(model.image_size))
        self.transform = EvalTransform((model.image_size[0] * factor, model.image_size[1] * factor), reading)
        self.show = shown_channels(None, model.reading.number)

    def picture(self, i: int) -> figures.Image:
        """Draw image i: uint8 ``[H, W, 3]``."""
        pixels = to_bytes(self.transform(self.source.image(i, self.reading)), self.model)
        image: figures.Image = pixels.permute(1, 2, 0).cpu().numpy()
        return figures.to_rgb(image if self.show is None else image[..., list(self.show)])


def write_sheet(path: Path, title: str, cells: Sequence[Cell], *, columns: int = 6, paired: bool = False) -> None:
    """Draw cells row by row, and write them as PNG.

    Args:
        path: of the file.
        title: above them.
        cells: at least one.
        columns: cells in a row.
        paired: cells 2 k and 2 k + 1 belong together: there is more room after them.
    """
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    aspect = cells[0].picture.shape[0] / cells[0].picture.shape[1]
    apart = (columns - 1) // 2 * 2 * GAP if paired else 0
    size = (2 * MARGIN + columns * (WIDTH + GAP) - GAP + apart, TITLE + rows * (WIDTH * aspect + CAPTION) + MARGIN)
    sheet = figures.Sheet(max(size[0], 4.5), size[1])
    sheet.write(title, MARGIN, 0.3, 11, "ls")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left = MARGIN + column * (WIDTH + GAP) + (column // 2 * 2 * GAP if paired else 0)
        top = TITLE + row * (WIDTH * aspect + CAPTION)
        sheet.place(cell.picture, left, top, WIDTH, WIDTH * aspect)
        sheet.write(f"{figures.shorten(cell.name, 26)}\n{cell.value}", left, top + WIDTH * aspect + 4 / 72, 7)
    with atomic_path(path) as partial:
        sheet.save(partial)
