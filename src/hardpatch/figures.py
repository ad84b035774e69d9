"""Pictures of heat maps, masks and reconstructions, drawn from arrays; nothing here calls a model.

Images are uint8 ``[H, W, C]`` NumPy arrays with any number of channels. Patches run row by row over a ``grid`` of
(rows, columns). Figures are :class:`matplotlib.figure.Figure` objects, without pyplot's global state.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hardpatch.patches import patchify, unpatchify
from hardpatch.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def score_figure(row: ScoreRow, *, draws: int, where: str = "", shown: str = "") -> "Figure":
    """Draw one image: picture, predicted difficulty, hardest patches masked, reconstruction, true loss (paper, Fig. 2).

    See :func:`contact_sheet` for the arguments.
    """
    return contact_sheet([row], draws=draws, where=where, shown=shown)


CELLS = "hardpatch-cells"
"""Entry of a PNG file with the places of the pictures on a contact sheet, as JSON."""


def contact_sheet(rows: Sequence[ScoreRow], *, draws: int, where: str = "", shown: str = "") -> "Figure":
    """Draw several images below each other, each as in :func:`score_figure`.

    Every heat map has its own scale, which the color bar beside it shows.

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
    titles = {"picture": f"picture{shown}"}
    if rows[0].mask is not None:
        percent = round(100 * float(rows[0].mask.mean()))
        if rows[0].difficulty is None:
            titles["masked"] = f"{percent} % masked at random"
        else:
            titles |= {"difficulty": f"predicted difficulty{where}", "masked": f"hardest {percent} % masked"}
    if rows[0].reconstruction is not None:
        titles["reconstruction"] = "reconstruction"
    titles["true_loss"] = f"true loss, {draws} random mask{'s' if draws > 1 else ''}"
    height, width = rows[0].image.shape[:2]
    sheet = _Sheet(len(rows), titles, height / width)
    for number, row in enumerate(rows):
        pictures, captions = _pictures(row), _captions(row)
        for column, title in titles.items():
            axes = sheet.cell(number, column)
            axes.imshow(pictures[column], aspect="auto")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=6)
            if column in captions:
                write_caption(axes, captions[column])
        if row.difficulty is not None:
            _draw_color_bar(sheet.bar(number, "difficulty"), row.difficulty)
        _draw_color_bar(sheet.bar(number, "true_loss"), row.true_loss)
    return sheet.figure


def save_contact_sheet(rows: Sequence[ScoreRow], path: Path, *, draws: int, where: str = "", shown: str = "") -> None:
    """Write a :func:`contact_sheet` as a PNG file that says where its pictures are: see :data:`CELLS`.

    The entry has the names of the images, and for each column the left edge and the width, and for each row the top
    edge and the height of its pictures, all in pixels.
    """
    figure = contact_sheet(rows, draws=draws, where=where, shown=shown)
    height, width = rows[0].image.shape[:2]
    columns = ["picture", "difficulty", "masked", "reconstruction", "true_loss"]
    lacking = {"difficulty": rows[0].difficulty, "masked": rows[0].mask, "reconstruction": rows[0].reconstruction}
    sheet = _Sheet(len(rows), [name for name in columns if lacking.get(name, rows) is not None], height / width)
    cells = json.dumps({"names": [printable(row.name) for row in rows], **sheet.cells()})
    figure.savefig(path, metadata={CELLS: cells})


def _pictures(row: ScoreRow) -> dict[str, Image]:
    """Picture of each column."""
    image = enlarge(row.image)
    pictures = {"picture": to_rgb(image), "true_loss": heat_map(image, row.true_loss, row.grid)}
    if row.difficulty is not None:
        pictures["difficulty"] = heat_map(image, row.difficulty, row.grid)
    if row.mask is not None:
        pictures["masked"] = to_rgb(masked_image(image, row.mask, row.grid))
    if row.reconstruction is not None:
        pictures["reconstruction"] = to_rgb(enlarge(row.reconstruction))
    return pictures


def _captions(row: ScoreRow) -> dict[str, str]:
    return {
        "picture": shorten(row.name),
        "difficulty": row.difficulty_caption,
        "true_loss": row.true_loss_caption,
    }


class _Sheet:
    """A figure with cells at fixed positions: nothing overlaps, and matplotlib need not search for a layout.

    Args:
        rows: number of rows.
        columns: names of the columns, from left to right.
        aspect: height of a picture over its width.
    """

    # inches
    WIDTH, MARGIN, GAP, GAP_WITH_BAR, CAPTION, TITLE = 2.2, 0.12, 0.12, 0.68, 0.3, 0.34

    def __init__(self, rows: int, columns: Iterable[str], aspect: float) -> None:
        from matplotlib.figure import Figure

        self.height = self.WIDTH * aspect
        self.lefts: dict[str, float] = {}
        total_width = self.MARGIN
        for column in columns:
            self.lefts[column] = total_width
            total_width += self.WIDTH + (self.GAP_WITH_BAR if column in ("difficulty", "true_loss") else self.GAP)
        size = (total_width, self.TITLE + rows * (self.height + self.CAPTION))
        self.figure = Figure(figsize=size, dpi=110, facecolor="white")

    def cells(self) -> dict[str, Any]:
        """Return the places of the pictures in pixels: of columns (left, width), of rows (top, height)."""
        dpi, count = self.figure.dpi, round((self.figure.get_size_inches()[1] - self.TITLE) / self._pitch)
        tops = (self.TITLE + row * self._pitch for row in range(count))
        return {
            "columns": {name: [round(left * dpi), round(self.WIDTH * dpi)] for name, left in self.lefts.items()},
            "rows": [[round(top * dpi), round(self.height * dpi)] for top in tops],
        }

    @property
    def _pitch(self) -> float:
        return self.height + self.CAPTION

    def cell(self, row: int, column: str) -> "Axes":
        return self._axes(row, self.lefts[column], self.WIDTH)

    def bar(self, row: int, column: str) -> "Axes":
        return self._axes(row, self.lefts[column] + self.WIDTH + 0.05, 0.08)

    def _axes(self, row: int, left: float, width: float) -> "Axes":
        return place(self.figure, left, self.TITLE + row * self._pitch, width, self.height)


def place(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add axes at a position from the upper left corner of a figure, in inches."""
    total_width, total_height = figure.get_size_inches()
    bottom = total_height - top - height
    return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))


def write_caption(axes: "Axes", caption: str, size: int = 8, *, centered: bool = False) -> None:
    """Write ``caption`` below axes, from their left edge or centered."""
    text = axes.annotate(
        caption,
        (0.5 if centered else 0, 0),
        xycoords="axes fraction",
        xytext=(0, -4),
        textcoords="offset points",
        ha="center" if centered else "left",
        va="top",
        fontsize=size,
        color=INK,
    )
    text.set_parse_math(False)  # a file name may contain dollar signs


def _draw_color_bar(axes: "Axes", values: Floats) -> None:
    """Draw a color bar with the lowest and the highest of ``values``."""
    axes.imshow(np.linspace(1, 0, 256)[:, None], aspect="auto", cmap=COLOR_MAP, extent=(0, 1, 0, 1))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 1], [f"{values.min():.2g}", f"{values.max():.2g}"], fontsize=7, color=INK)
    low, high = axes.get_yticklabels()
    low.set_verticalalignment("bottom")
    high.set_verticalalignment("top")
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def shorten(name: str, length: int = 28) -> str:
    """Return the end of a long name, which distinguishes the paths of images."""
    name = legible(name)
    return name if len(name) <= length else "…" + name[1 - length :]


def legible(name: str) -> str:
    """Escape what matplotlib's font lacks."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in printable(name))
