"""Heat maps, masks, reconstructions and curves as pictures, from arrays alone: nothing here calls a model.

Images are uint8 ``[H, W, C]`` numpy arrays with any number of channels; patches run row by row over a ``grid`` of
(rows, columns). Figures are :class:`matplotlib.figure.Figure` objects that no global state knows of.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hardpatch.patches import patchify, unpatchify

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

COLOR_MAP = "viridis"  # even in lightness, so color-blind readers and gray prints keep the order
MASK_GRAY = 128
INK, FAINT = "#333333", "#e3e3e3"
LINES = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito's colors for the color-blind


def to_rgb(image: Image) -> Image:
    """``[H, W, C]`` -> ``[H, W, 3]``: one or two channels give a gray picture of the first, others the first three."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def enlarge(image: Image, least: int = 256) -> Image:
    """Repeat pixels (nearest neighbor) by a whole factor until the shorter side has ``least`` pixels or just more."""
    factor = math.ceil(least / min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def spread(values: NDArray[Any], grid: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """One value a patch ``[N]`` -> one a pixel ``[H, W]``, constant within a patch; ``size`` is (height, width)."""
    (rows, columns), (height, width) = grid, size
    return values.reshape(grid).repeat(height // rows, axis=0).repeat(width // columns, axis=1)


def heat_map(image: Image, values: Floats, grid: tuple[int, int], opacity: float = 0.65) -> Image:
    """``values [N]`` as colors, lowest dark and highest bright, over the gray picture: ``[H, W, 3]``."""
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colors = colormaps[COLOR_MAP](spread(scaled, grid, image.shape[:2]))[..., :3] * 255
    gray = to_rgb(image).mean(axis=-1, keepdims=True)
    return (opacity * colors + (1 - opacity) * gray).round().astype(np.uint8)


def masked_image(image: Image, mask: Bools, grid: tuple[int, int]) -> Image:
    """The picture with its masked patches (``mask [N]``, True = masked) painted gray, ``[H, W, C]``."""
    return np.where(spread(mask, grid, image.shape[:2])[..., None], np.uint8(MASK_GRAY), image)


def reconstruction(
    image: Image, prediction: Floats, mask: Bools, patch_size: int, mean: Floats, std: Floats, *, normalized: bool
) -> Image:
    """What the model puts into the masked patches, the visible ones as they are: ``[H, W, C]``.

    Args:
        image: the picture.
        prediction: patch vectors ``[M, p * p * C]`` of the masked patches, in increasing patch order.
        mask: ``[N]``, True = masked.
        patch_size: p.
        mean, std: of each channel in [0, 1] units, by which the model's input was normalized.
        normalized: whether the model predicts pixels normalized patch by patch. They carry neither brightness nor
            contrast, so each patch borrows the mean and the variance of the true one to be looked at (as MAE does).
    """
    grid = (image.shape[0] // patch_size, image.shape[1] // patch_size)
    scale = 255.0 * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    shift = 255.0 * torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
    pixels = torch.tensor(image).permute(2, 0, 1).unsqueeze(0).float()
    patches = patchify((pixels - shift) / scale, patch_size)
    hidden, filled = torch.tensor(mask), torch.tensor(prediction)
    if normalized:
        deviation, level = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt(), patches.mean(dim=-1, keepdim=True)
        filled = filled * deviation[0, hidden] + level[0, hidden]
    patches[0, hidden] = filled
    whole = unpatchify(patches, patch_size, grid) * scale + shift
    # A model that has diverged predicts NaN, which has no color: black.
    return whole[0].permute(1, 2, 0).nan_to_num().clamp(0, 255).round().byte().numpy()


class ScoreRow(NamedTuple):
    """What one row of :func:`contact_sheet` shows."""

    name: str
    image: Image
    difficulty: Floats
    """Predicted difficulty ``[N]``."""
    mask: Bools
    """The hardest patches ``[N]``, True = masked."""
    reconstruction: Image | None
    """None where the model does not predict pixels; the column is left out."""
    true_loss: Floats
    """Mean reconstruction loss ``[N]`` over random masks."""
    grid: tuple[int, int]
    difficulty_caption: str = ""
    true_loss_caption: str = ""


def score_figure(row: ScoreRow, *, draws: int, where: str = "") -> "Figure":
    """One image: picture, predicted difficulty, hardest patches masked, reconstruction, true loss (paper, Fig. 2)."""
    return contact_sheet([row], draws=draws, where=where)


def contact_sheet(rows: Sequence[ScoreRow], *, draws: int, where: str = "") -> "Figure":
    """Several images below each other, each as in :func:`score_figure`; ``draws`` is the number of masks behind a loss,
    and ``where`` says of which patches difficulty was predicted, if not of all that are seen.

    The heat maps have their own scale each, which the bar beside them gives.

    Raises:
        ValueError: if there is no row.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("rows: expected at least one image, got none")
    ratio = round(100 * float(rows[0].mask.mean()))
    titles = {
        "picture": "picture",
        "difficulty": f"predicted difficulty{where}",
        "masked": f"hardest {ratio} % masked",
        "reconstruction": "reconstruction",
        "true_loss": f"true loss, {draws} random mask{'s' if draws > 1 else ''}",
    }
    if rows[0].reconstruction is None:
        del titles["reconstruction"]
    # Places in inches, fixed by hand: nothing overlaps and no layout has to be searched for, picture after picture.
    width, margin, gap, bar_gap, caption_space, title_space = 2.2, 0.12, 0.12, 0.68, 0.3, 0.34
    height = width * rows[0].image.shape[0] / rows[0].image.shape[1]
    lefts, total_width = {}, margin
    for column in titles:
        lefts[column] = total_width
        total_width += width + (bar_gap if column in ("difficulty", "true_loss") else gap)
    total_height = title_space + len(rows) * (height + caption_space)
    figure = Figure(figsize=(total_width, total_height), dpi=110, facecolor="white")

    def place(left: float, bottom: float, wide: float, high: float) -> "Axes":
        return figure.add_axes((left / total_width, bottom / total_height, wide / total_width, high / total_height))

    for number, row in enumerate(rows):
        bottom = total_height - title_space - height - number * (height + caption_space)
        size = enlarge(row.image)
        pictures = {
            "picture": to_rgb(size),
            "difficulty": heat_map(size, row.difficulty, row.grid),
            "masked": to_rgb(masked_image(size, row.mask, row.grid)),
            "true_loss": heat_map(size, row.true_loss, row.grid),
        }
        if row.reconstruction is not None:
            pictures["reconstruction"] = to_rgb(enlarge(row.reconstruction))
        values = {"difficulty": row.difficulty, "true_loss": row.true_loss}
        captions = {
            "picture": _shorten(row.name),
            "difficulty": row.difficulty_caption,
            "true_loss": row.true_loss_caption,
        }
        for column, title in titles.items():
            axes = place(lefts[column], bottom, width, height)
            axes.imshow(pictures[column], aspect="auto")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=6)
            if column in captions:
                text = axes.annotate(
                    captions[column],
                    (0, 0),
                    xycoords="axes fraction",
                    xytext=(0, -4),
                    textcoords="offset points",
                    va="top",
                    fontsize=8,
                    color=INK,
                )
                text.set_parse_math(False)  # a file name may hold dollars
            if column in values:
                _bar(place(lefts[column] + width + 0.05, bottom, 0.08, height), values[column])
    return figure


def _bar(axes: "Axes", values: Floats) -> None:
    """A color bar that names the lowest and the highest of ``values``."""
    axes.imshow(np.linspace(1, 0, 256)[:, None], aspect="auto", cmap=COLOR_MAP, extent=(0, 1, 0, 1))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 1], [f"{values.min():.2g}", f"{values.max():.2g}"], fontsize=7, color=INK)
    low, high = axes.get_yticklabels()
    low.set_verticalalignment("bottom")
    high.set_verticalalignment("top")
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def _shorten(name: str, length: int = 28) -> str:
    """The end of a long name: that is where a path tells images apart."""
    return name if len(name) <= length else "…" + name[1 - length :]


PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "loss",
        (
            ("loss", "total"),
            ("reconstruction_loss", "reconstruction"),
            ("predicting_loss", "predicting"),
            ("class_loss", "class tokens"),
            ("val_loss", "validation"),
            ("main_loss", "UperNet"),
            ("auxiliary_loss", "auxiliary head"),
        ),
    ),
    ("loss predictor", (("pair_accuracy", "pairs in the right order"), ("spearman", "rank correlation"))),
    ("use of tokens, 1 = evenly", (("token_entropy", "predicted"), ("target_entropy", "target"))),
    ("accuracy on validation images", (("top1", "top-1"), ("top5", "top-5"))),
    (
        "pixels of validation images",
        (("miou", "mIoU"), ("mean_accuracy", "mean accuracy of classes"), ("pixel_accuracy", "accuracy")),
    ),
    ("average precision on validation images", (("box_ap", "boxes"), ("mask_ap", "masks"))),
    ("k-NN top-1", (("knn_top1", "k-NN top-1"),)),
    ("share of hard patches (alpha)", (("alpha", "alpha"),)),
    ("learning rate", (("lr", "learning rate"),)),
)
"""A panel's title, then its curves: a key of the metrics and its name in the legend."""


def training_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw whatever a run has measured into the picture at ``path`` and return it.

    Args:
        metrics: the rows of ``metrics.jsonl``; a row need not have every key. The known ones are in :data:`PANELS`,
            drawn against ``epoch`` where the rows have it and against ``step`` otherwise.
        path: a ``.png`` (or ``.pdf``, ``.svg``) file; its folder is made.

    Raises:
        ValueError: if no row has anything to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    axis = "epoch" if any("epoch" in row for row in metrics) else "step"
    curves = {key: _curve(metrics, axis, key) for _, keys in PANELS for key, _ in keys}
    panels = [(title, [(key, name) for key, name in keys if curves[key][0]]) for title, keys in PANELS]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        known = ", ".join(curves)
        raise ValueError(f"metrics: expected rows with {axis!r} and one of {known}; got {len(metrics)} rows with none")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(4.2 * columns, 2.9 * lines), dpi=110, layout=layout)
    for place, (title, keys) in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, place)
        for color, (key, name) in zip(LINES, keys, strict=False):
            x, y = curves[key]
            axes.plot(x, y, color=color, label=name, linewidth=1.6, marker="o" if len(x) <= 20 else "", markersize=3)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_xlabel(axis, fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK, length=0)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.yaxis.set_major_formatter("{x:g}")
        if len(dict(PANELS)[title]) > 1:
            axes.legend(fontsize=8, framealpha=1, edgecolor="none", labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curve(metrics: Sequence[Mapping[str, Any]], axis: str, key: str) -> tuple[list[float], list[float]]:
    """The points of the rows that have both values; a value that is no number (None, NaN) is left out."""
    rows = [(row[axis], row[key]) for row in metrics if row.get(axis) is not None and row.get(key) is not None]
    points = [(float(x), float(y)) for x, y in rows if math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]
