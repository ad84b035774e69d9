"""Settings of a gallery, its result, and the files that it writes."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hardpatch.data.sources import Paths
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, write_text_atomically
from hardpatch.measure.difficulty import OF_PREDICTION, ImageScore, Predict
from hardpatch.measure.score import mean
from hardpatch.printable import printable
from hardpatch.study.gallery_picture import GalleryTuple, gallery_page, two_decimals
from hardpatch.train.result import write_result

PAGE_ROWS = 8
"""Rows of images on a page."""


class PaperFigure(NamedTuple):
    """A figure of the paper that shows losses of patches."""

    name: str
    panels: tuple[str, ...]
    """of each image, from left to right"""
    columns: int
    """images in a row"""
    shows: str
    """images and model of the paper's own figure"""


PAIR = ("image", "predicted")
FIGURES = {
    "fig2": PaperFigure(
        "Figure 2",
        ("image", "true_loss", "predicted", "masked"),
        3,
        "images of the ImageNet validation set, and the loss of MAE's ViT-B/16",
    ),
    "fig4": PaperFigure("Figure 4", PAIR, 4, "images of the COCO validation set"),
    "figS1": PaperFigure("Figure S1", PAIR, 4, "images of the ImageNet validation set"),
    "figS2": PaperFigure("Figure S2", PAIR, 4, "images of the COCO validation set"),
}
"""The paper's figures by their names on the command line."""


@dataclass(frozen=True)
class Gallery:
    """A figure to draw: the arguments of ``hardpatch study fig2``, ``fig4``, ``figS1`` and ``figS2``."""

    figure: str
    """key of :data:`FIGURES`"""
    run: str | Path
    """run folder, ``.safetensors`` file or reference checkpoint"""
    images: Sequence[str]
    """files, folders, Parquet files, ``demo:test``"""
    out: Path
    """folder to make; it must be empty if it exists"""
    masks: Path | None = None
    """folder of object masks with the file stems of the images, for ROC areas; None takes those of the demo set"""
    predictor: str | Path | None = None
    """another run whose predicted loss to show beside the true loss of ``run``, for Fig. 2 only"""
    count: int = 12
    """images to show, drawn at random"""
    columns: int | None = None
    """images in a row; None is that of the figure"""
    mask_ratio: float | None = None
    """share of masked patches; None is that of ``run``"""
    draws: int = 10
    """random masks over which the true loss is averaged"""
    predict: Predict | None = None
    """source of the predicted loss; None is the one that the run mined by"""
    seed: int = 0
    """of the random masks and of the choice of images"""
    normalize_pixels: bool = False
    """for reference checkpoints, which do not say: the targets were normalized patch by patch"""
    batch_size: int = 32
    workers: int | Literal["auto"] = "auto"
    max_bad_fraction: float = 1.0
    """share of the chosen images that may be undecodable; these are named and left out"""
    device: str = "auto"
    image_column: str | None = None
    arguments: tuple[str, ...] = ()
    """command line, for the README"""


@dataclass(frozen=True)
class GalleryResult:
    """Result of :func:`~hardpatch.study.gallery.draw_gallery`. Means are over the images shown that have the value."""

    gallery: Gallery
    panels: tuple[str, ...]
    """of each image: those of the figure that the run has"""
    masked_share: float
    """share of the patches in a mask"""
    candidates: int
    """images that the shown ones were drawn from"""
    scores: tuple[ImageScore, ...]
    """of the images shown"""
    bad: tuple[str, ...]
    """one line for each drawn image that could not be read"""
    pictures: tuple[Path, ...] = ()

    @property
    def has_predictor(self) -> bool:
        """False if there is no predicted loss, but only the true one."""
        return "predicted" in self.panels

    @property
    def means(self) -> dict[str, float | None]:
        """Mean rank correlation and mean areas under the ROC curve by name; None if no image has the value."""
        names = [name for name in ("spearman", "auc", "true_loss_auc") if self._known(name)]
        return {name: mean(getattr(score, name) for score in self.scores) for name in names}

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers of each image, ready for JSON."""
        names = ("path", "mean_difficulty", "mean_true_loss", "spearman", "auc", "true_loss_auc")
        return [{name: getattr(score, name) for name in names if self._known(name)} for score in self.scores]

    def _known(self, name: str) -> bool:
        return self.has_predictor or name not in OF_PREDICTION


NO_PREDICTED_LOSS = (
    "Panels (c) and (d) need a loss predictor, which this run has not; --predictor RUN2 adds another run's."
)

MEANS = {
    "true_loss_auc": "area under the ROC curve of the true loss against the object masks",
    "auc": "area under the ROC curve of the predicted loss against the object masks",
    "spearman": "rank correlation of predicted and true loss within an image",
}

README = """# {name} of the paper, drawn from a run

Made by `{command}`.

{panels}

Red patches have the highest loss of their image, blue ones the lowest: each map has its own scale.{note}

{chosen}

{means}`result.json` has the numbers of each image; the pictures are {pictures}.
The paper's {name} shows {shows}.
"""


def write_gallery(result: GalleryResult, tuples: Sequence[GalleryTuple], seconds: float) -> GalleryResult:
    """Write the pages, ``result.json`` and ``README.md``, all or nothing. Returns the result with its pictures.

    Raises:
        UserError: if the folder cannot be written.
    """
    gallery, per_row = result.gallery, result.gallery.columns or FIGURES[result.gallery.figure].columns
    on_page = per_row * PAGE_ROWS
    pages = [tuples[start : start + on_page] for start in range(0, len(tuples), on_page)]
    names = [f"{gallery.figure}{'' if len(pages) == 1 else f'_{number}'}.png" for number in range(1, len(pages) + 1)]
    folder = gallery.out.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as partial:
            partial.mkdir()
            for name, page in zip(names, pages, strict=True):
                gallery_page(page, _titles(result), per_row, _footer(result)).save(partial / name)
            _write_numbers(partial, result, names, seconds)
            write_text_atomically(partial / "README.md", _readme(result, names))
    except OSError as error:
        raise UserError(f"--out: cannot write {gallery.out}: {error.strerror}") from None
    return replace(result, pictures=tuple(gallery.out / name for name in names))


def _titles(result: GalleryResult) -> list[str]:
    """Title of each panel; lettered if there are more than two, as in the paper."""
    titles = {
        "image": "image",
        "true_loss": "true loss",
        "predicted": "predicted loss",
        "masked": f"hardest {result.masked_share:.0%} masked",
    }
    panels = FIGURES[result.gallery.figure].panels
    letters = dict(zip(panels, ("(a) ", "(b) ", "(c) ", "(d) ") if len(panels) > 2 else ("", ""), strict=True))
    return [letters[name] + titles[name] for name in result.panels]


def _footer(result: GalleryResult) -> str:
    """Means of what the figure shows."""
    shown = {"true_loss_auc": "true loss", "auc": "predicted loss"}
    if "true_loss" not in result.panels:
        del shown["true_loss_auc"]
    areas = [
        f"{name} {two_decimals(mean)}" for key, name in shown.items() if (mean := result.means.get(key)) is not None
    ]
    parts = [f"mean ROC area: {', '.join(areas)}"] if areas else []
    correlation = result.means.get("spearman")
    if correlation is not None and "true_loss" in result.panels:
        parts.append(f"mean rank correlation {two_decimals(correlation)}")
    return " · ".join(parts)


def _write_numbers(folder: Path, result: GalleryResult, pictures: Sequence[str], seconds: float) -> None:
    gallery = result.gallery
    data: dict[str, Paths] = {"images": gallery.images}
    data |= {"masks": gallery.masks} if gallery.masks else {}
    write_result(
        folder,
        f"study {gallery.figure}",
        run=str(gallery.run),
        data=data,
        images={"shown": len(result.scores), "given": result.candidates},
        classes=None,
        left_out={"undecodable": len(result.bad)},
        seconds=seconds,
        undecodable=list(result.bad),
        predictor=None if gallery.predictor is None else str(gallery.predictor),
        note=None if result.has_predictor else NO_PREDICTED_LOSS,
        masked_share=result.masked_share,
        draws=gallery.draws,
        seed=gallery.seed,
        pictures=list(pictures),
        mean=result.means,
        scores=result.rows(),
    )


def _readme(result: GalleryResult, pictures: Sequence[str]) -> str:
    gallery, figure = result.gallery, FIGURES[result.gallery.figure]
    share = f"{result.masked_share:.0%}"
    contents = {
        "image": "the image, resized and center-cropped to the size of the model",
        "true_loss": f"reconstruction loss of each patch by `{gallery.run}`, mean over {gallery.draws} random masks "
        f"of {share} of the patches",
        "predicted": f"loss of each patch as predicted by `{gallery.predictor or gallery.run}`",
        "masked": f"the image without the {share} of its patches with the highest predicted loss",
    }
    panels = zip(_titles(result), (contents[name] for name in result.panels), strict=True)
    means = {text: mean for name, text in MEANS.items() if (mean := result.means.get(name)) is not None}
    table = [f"| {text} | {mean:.3f} |" for text, mean in means.items()]
    if table:
        table = ["| mean over the images shown | |", "|---|---|", *table, "", ""]
    chosen = f"{len(result.scores)} of {result.candidates} images, drawn at random with seed {gallery.seed}."
    if result.bad:
        chosen += f" {len(result.bad)} more were drawn and could not be decoded:\n\n"
        chosen += "\n".join(f"- {' '.join(line.split())}" for line in result.bad)
    return README.format(
        name=figure.name,
        command=printable(shlex.join(["hardpatch", "study", *gallery.arguments])),
        panels="\n".join(f"- **{title}**: {content}" for title, content in panels),
        note="" if result.has_predictor else f" {NO_PREDICTED_LOSS}",
        chosen=chosen,
        means="\n".join(table),
        pictures=", ".join(f"`{name}`" for name in pictures),
        shows=figure.shows,
    )
