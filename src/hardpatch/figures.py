"""Pictures of heat maps, masks and reconstructions, drawn from arrays; nothing here calls a model.

Images are uint8 ``[H, W, C]`` NumPy arrays with any number of channels. Patches run row by row over a ``grid`` of
(rows, columns).
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from PIL.Image import Resampling
from PIL.PngImagePlugin import PngInfo

from hardpatch.patches import patchify, unpatchify
from hardpatch.printable import printable

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

COLOR_MAP = "viridis"  # lightness rises evenly, so the order is visible to the color-blind and in gray prints
RED_IS_HIGH = "RdYlBu_r"  # of galleries: from blue over yellow to red, as in the paper
MASK_GRAY = 128
INK, FAINT = "#333333", "#e3e3e3"  # of text, of grids
LINES = ("#0072b2", "#d55e00", "#009e73")  # of curves: Okabe and Ito's colors for the color-blind


def to_rgb(image: Image) -> Image:
    """Convert ``[H, W, C]`` to ``[H, W, 3]``: the first three channels, or with fewer the first one as gray."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def channels_caption(channels: int | tuple[int, ...]) -> str:
    """Describe which channels of the files :func:`to_rgb` shows; empty if these are all of them.

    Args:
        channels: number of channels of the images, or which channels of the files they are, as a reading has it.
    """
    number = channels if isinstance(channels, int) else len(channels)
    shown = (range(number) if isinstance(channels, int) else channels)[: 3 if number >= 3 else 1]
    if number == channels and number in (1, 3):
        return ""
    more = f" of {number}" if len(shown) < number else ""
    return f", channel{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown))}{more}"


def enlarge(image: Image, least: int = 256) -> Image:
    """Repeat pixels by the smallest whole factor with which the shorter side has at least ``least`` pixels."""
    factor = math.ceil(least / min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def patches_to_pixels(values: NDArray[Any], grid: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """Repeat a value per patch ``[N]`` for all pixels of the patch: ``[H, W]``; ``size`` is (height, width)."""
    (rows, columns), (height, width) = grid, size
    return values.reshape(grid).repeat(height // rows, axis=0).repeat(width // columns, axis=1)


def heat_map(
    image: Image,
    values: Floats,
    grid: tuple[int, int],
    opacity: float = 0.65,
    color_map: str = COLOR_MAP,
    limits: tuple[float, float] | None = None,
) -> Image:
    """Draw ``values [N]`` as colors, lowest dark and highest bright, over the gray image: ``[H, W, 3]``.

    With ``color_map`` :data:`RED_IS_HIGH` the lowest are blue and the highest red. ``limits`` are the values of the
    two ends of the scale, if not the lowest and the highest.
    """
    from matplotlib import colormaps

    low, high = limits or (float(values.min()), float(values.max()))
    scaled = (values - low).clip(0, high - low) / (high - low) if high > low else np.zeros_like(values)
    colors = colormaps[color_map](patches_to_pixels(scaled, grid, image.shape[:2]))[..., :3] * 255
    gray = to_rgb(image).mean(axis=-1, keepdims=True)
    return (opacity * colors + (1 - opacity) * gray).round().astype(np.uint8)


def masked_image(image: Image, mask: Bools, grid: tuple[int, int]) -> Image:
    """Paint the masked patches of an image gray (``mask [N]``, True = masked): ``[H, W, C]``."""
    return np.where(patches_to_pixels(mask, grid, image.shape[:2])[..., None], np.uint8(MASK_GRAY), image)


def reconstruction(
    image: Image, prediction: Floats, mask: Bools, patch_size: int, mean: Floats, std: Floats, *, normalized: bool
) -> Image:
    """Replace the masked patches of an image by the model's prediction: ``[H, W, C]``.

    Args:
        image: the original.
        prediction: patch vectors ``[M, p * p * C]`` of the masked patches, in increasing patch order.
        mask: ``[N]``, True = masked.
        patch_size: p.
        mean: of each channel for pixels in [0, 1], with which the model's input was normalized.
        std: standard deviation likewise.
        normalized: True if the model predicts pixels normalized patch by patch. They have neither brightness nor
            contrast, so each patch gets the mean and the variance of the original one (as in MAE).
    """
    grid = (image.shape[0] // patch_size, image.shape[1] // patch_size)
    scale = 255.0 * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    shift = 255.0 * torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
    pixels = torch.tensor(image).permute(2, 0, 1).unsqueeze(0).float()
    patches = patchify((pixels - shift) / scale, patch_size)
    masked, predicted = torch.tensor(mask), torch.tensor(prediction)
    if normalized:
        patch_std, patch_mean = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt(), patches.mean(dim=-1, keepdim=True)
        predicted = predicted * patch_std[0, masked] + patch_mean[0, masked]
    patches[0, masked] = predicted
    reconstructed = unpatchify(patches, patch_size, grid) * scale + shift
    # NaN, which a diverged model predicts, becomes black
    return reconstructed[0].permute(1, 2, 0).nan_to_num().clamp(0, 255).round().byte().numpy()


class ScoreRow(NamedTuple):
    """One image of a :func:`contact_sheet`."""

    name: str
    image: Image
    difficulty: Floats | None
    """predicted difficulty ``[N]``; None without a loss predictor, its columns are left out"""
    mask: Bools | None
    """patches that are masked for the reconstruction ``[N]``, True = masked: the hardest, or random without a
    difficulty; None leaves the column out"""
    reconstruction: Image | None
    """None if the model does not predict pixels; the column is left out"""
    true_loss: Floats
    """mean reconstruction loss ``[N]`` over random masks"""
    grid: tuple[int, int]
    difficulty_caption: str = ""
    true_loss_caption: str = ""


def score_figure(row: ScoreRow, *, draws: int, where: str = "", shown: str = "") -> "Sheet":
    """Draw one image: picture, predicted difficulty, hardest patches masked, reconstruction, true loss (paper, Fig. 2).

    See :func:`contact_sheet` for the arguments.
    """
    return contact_sheet([row], draws=draws, where=where, shown=shown)


CELLS = "hardpatch-cells"
"""Entry of a PNG file with the places of the pictures on a contact sheet, as JSON."""
# inches, on a contact sheet
WIDTH, MARGIN, GAP, GAP_WITH_BAR, CAPTION, TITLE = 2.2, 0.12, 0.12, 0.68, 0.3, 0.34


def contact_sheet(rows: Sequence[ScoreRow], *, draws: int, where: str = "", shown: str = "") -> "Sheet":
    """Draw several images below each other, each as in :func:`score_figure`.

    Every heat map has its own scale, which the color bar beside it shows. The file says where its pictures are: its
    entry :data:`CELLS` has the names of the images, and for each column the left edge and the width, and for each row
    the top edge and the height of its pictures, all in pixels.

    Args:
        rows: the images; all have the same shape.
        draws: number of random masks over which the true loss is averaged.
        where: appended to the title of the predicted difficulty.
        shown: appended to the title of the picture.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("rows: expected at least one image, got none")
    titles = _titles(rows[0], draws, where, shown)
    gaps = [GAP_WITH_BAR if column in ("difficulty", "true_loss") else GAP for column in titles]
    *lefts, width = accumulate((WIDTH + gap for gap in gaps), initial=MARGIN)
    height = WIDTH * rows[0].image.shape[0] / rows[0].image.shape[1]
    sheet = Sheet(width, TITLE + len(rows) * (height + CAPTION))
    cells: dict[str, Any] = {"names": [printable(row.name) for row in rows], "columns": {}, "rows": []}
    for left, title in zip(lefts, titles.values(), strict=True):
        sheet.write(title, left + WIDTH / 2, TITLE - 6 / 72, 10, "ms")
    for number, row in enumerate(rows):
        top = TITLE + number * (height + CAPTION)
        pictures, captions = _pictures(row), _captions(row)
        for column, left in zip(titles, lefts, strict=True):
            x, y, *size = sheet.place(pictures[column], left, top, WIDTH, height)
            cells["columns"][column] = [x, size[0]]
            sheet.write(captions.get(column, ""), left, top + height + 2 / 72)
            if (values := {"difficulty": row.difficulty, "true_loss": row.true_loss}.get(column)) is not None:
                _draw_color_bar(sheet, values, left + WIDTH + 0.05, top, height)
        cells["rows"].append([y, size[1]])
    sheet.entries[CELLS] = json.dumps(cells)
    return sheet


def _titles(row: ScoreRow, draws: int, where: str, shown: str) -> dict[str, str]:
    """Title of each column."""
    titles = {"picture": f"picture{shown}"}
    if row.mask is not None:
        percent = round(100 * float(row.mask.mean()))
        if row.difficulty is None:
            titles["masked"] = f"{percent} % masked at random"
        else:
            titles |= {"difficulty": f"predicted difficulty{where}", "masked": f"hardest {percent} % masked"}
    if row.reconstruction is not None:
        titles["reconstruction"] = "reconstruction"
    return titles | {"true_loss": f"true loss, {draws} random mask{'s' if draws > 1 else ''}"}


def _pictures(row: ScoreRow) -> dict[str, Image]:
    """Picture of each column."""
    pictures = {"picture": to_rgb(row.image), "true_loss": heat_map(row.image, row.true_loss, row.grid)}
    if row.difficulty is not None:
        pictures["difficulty"] = heat_map(row.image, row.difficulty, row.grid)
    if row.mask is not None:
        pictures["masked"] = masked_image(pictures["picture"], row.mask, row.grid)
    if row.reconstruction is not None:
        pictures["reconstruction"] = to_rgb(row.reconstruction)
    return {column: enlarge(picture) for column, picture in pictures.items()}


def _captions(row: ScoreRow) -> dict[str, str]:
    return {
        "picture": shorten(row.name),
        "difficulty": row.difficulty_caption,
        "true_loss": row.true_loss_caption,
    }


class Sheet:
    """A white picture with pictures and texts at fixed positions, in inches from its upper left corner.

    Pillow draws it: Matplotlib takes some 30 ms for the axes of each picture.

    Args:
        width: in inches.
        height: likewise.
        dpi: pixels of an inch.
    """

    def __init__(self, width: float, height: float, dpi: int = 110) -> None:
        self.dpi = dpi
        size = (int(width * dpi + 1e-6), int(height * dpi + 1e-6))  # a sum of floats may lie just below a whole number
        self.image = PILImage.new("RGB", size, "white")
        self.entries: dict[str, str] = {}
        """texts of the PNG file, by name"""

    def place(
        self,
        picture: Image,
        left: float,
        top: float,
        width: float,
        height: float,
        resampling: Resampling = Resampling.BILINEAR,
    ) -> tuple[int, int, int, int]:
        """Resize a picture ``[H, W, 3]`` and put it on the sheet. Returns left, top, width and height in pixels."""
        x, y, *size = (round(length * self.dpi) for length in (left, top, width, height))
        columns, rows = max(1, size[0]), max(1, size[1])
        self.image.paste(PILImage.fromarray(picture).resize((columns, rows), resampling), (x, y))
        return x, y, columns, rows

    def write(self, text: str, x: float, y: float, size: float = 8, anchor: str = "la", most: float = math.inf) -> None:
        """Write a text of ``size`` points, cut after ``most`` inches; ``anchor`` says where in it the position is."""
        font = ImageFont.truetype(_font_file(), size * self.dpi / 72)
        while most < math.inf and font.getlength(text) > most * self.dpi:
            text = f"{text[:-2]}…"
        ImageDraw.Draw(self.image).text((round(x * self.dpi), round(y * self.dpi)), text, INK, font, anchor)

    def save(self, path: Path) -> None:
        """Write a PNG file."""
        texts = PngInfo()
        for name, text in self.entries.items():
            texts.add_text(name, text)
        self.image.save(path, "PNG", dpi=(self.dpi, self.dpi), pnginfo=texts)


def color_bar(color_map: str) -> Image:
    """Return the colors of a map from the lowest to the highest, ``[1, 256, 3]``."""
    from matplotlib import colormaps

    return colormaps[color_map](np.linspace(0, 1, 256), bytes=True)[None, :, :3]


def _draw_color_bar(sheet: Sheet, values: Floats, left: float, top: float, height: float) -> None:
    """Draw a color bar with the lowest and the highest of ``values``."""
    sheet.place(color_bar(COLOR_MAP).transpose(1, 0, 2)[::-1], left, top, 0.08, height)
    sheet.write(f"{values.max():.2g}", left + 0.08 + 2 / 72, top, 7)
    sheet.write(f"{values.min():.2g}", left + 0.08 + 2 / 72, top + height, 7, "ld")


def shorten(name: str, length: int = 28) -> str:
    """Return the end of a long name, which distinguishes the paths of images."""
    name = legible(name)
    return name if len(name) <= length else "…" + name[1 - length :]


def legible(name: str) -> str:
    """Escape what the font lacks."""
    from matplotlib import font_manager

    known = font_manager.get_font(_font_file()).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in printable(name))


@cache
def _font_file() -> str:
    """Path of matplotlib's font."""
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties())
