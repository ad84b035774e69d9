"""Pictures, contact sheet and Parquet table of the difficulty of images."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hardpatch import figures
from hardpatch.data.batch import Batch
from hardpatch.data.order import evenly_spread
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, write_text_atomically
from hardpatch.measure.difficulty import (
    OF_PREDICTION,
    ImageScore,
    PatchDifficulty,
    Predict,
    fixed_masks,
    hardest_patches,
)
from hardpatch.methods.hpm import HPM
from hardpatch.models.pixels import to_bytes

SHEET_ROWS = 8
"""Images on the contact sheet."""
NO_PREDICTOR = "The run has no loss predictor: there is a true loss, but no predicted difficulty."

COLUMNS = {
    "path": "file of the image",
    "mean_difficulty": "mean predicted difficulty of its patches",
    "mean_true_loss": "mean true loss of its patches",
    "spearman": "rank correlation of predicted difficulty and true loss",
    "auc": "area under the ROC curve of the predicted difficulty as a detector of the object, where masks are given",
    "true_loss_auc": "area under the ROC curve of the true loss as a detector of the object, where masks are given",
    "difficulty": "predicted difficulty of each patch, row by row",
    "true_loss": "true loss of each patch: reconstruction loss, mean over {draws} random masks",
    "rows": "patches from top to bottom",
    "columns": "patches from left to right",
}
"""Columns of ``scores.parquet``."""

README = """# Difficulty of image patches

| file | content |
|---|---|
| `scores.parquet` | a row for each of {images} images |
| `contact_sheet.png` | some images, evenly spread over the set, below each other |
| `*-*.png` | a picture of each of more images; bright patches have the highest values of the image |

{note}Columns of `scores.parquet`; a value that does not exist is null:

| column | content |
|---|---|
{columns}
"""


class ScoreFiles:
    """Files of one call of :func:`~hardpatch.measure.score.score`.

    Args:
        folder: where to write; created if it does not exist.
        student: the model that reconstructs.
        masked: number of patches masked for the reconstruction, the hardest ones, or random ones without a predictor.
        limit: number of images with a picture, evenly spread over the set; so are those on the contact sheet.
        images: number in the set.
        draws: random masks over which the true loss was averaged, for the titles.
        predict: source of the predicted difficulty, for the titles.
        show: one or three channels that pictures show; None is all, or the first three.
        singles: also write a picture of each single image.

    Raises:
        UserError: if the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        student: HPM,
        masked: int,
        limit: int,
        *,
        images: int,
        draws: int,
        predict: Predict,
        show: Sequence[int] | None = None,
        singles: bool = True,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: expected a folder that can be written, got {folder}: {error.strerror}") from None
        self.folder, self.student, self.masked, self.draws, self.singles = folder, student, masked, draws, singles
        pictured = evenly_spread(images, limit)
        self._pictured = set(pictured)
        self._on_sheet = {pictured[k] for k in evenly_spread(len(pictured), SHEET_ROWS)}
        self.show = shown_channels(show, student.reading.number)
        self.shown = "" if self.show is None else f", channels {', '.join(map(str, self.show))}"
        self.suffix = ", masked" if predict == "masked" else ""
        self.scores: list[ImageScore] = []
        self.pictures: list[Path] = []
        self._sheet: list[figures.ScoreRow] = []

    def add(self, batch: Batch, difficulty: PatchDifficulty, scores: Sequence[ImageScore]) -> None:
        """Take the scores of a batch, and draw those of its images that get a picture."""
        self.scores += scores
        chosen = [k for k, index in enumerate(batch.indices.tolist()) if index in self._pictured]
        if not chosen:
            return
        indices = batch.indices[chosen]
        if difficulty.predicted is None:
            mask = next(fixed_masks(indices.to(difficulty.true_loss.device), self.student.grid, self.masked, 1, seed=0))
        else:
            mask = hardest_patches(difficulty.predicted[chosen], self.masked)  # bool [pictures, N]
        rows = self._rows(batch.images[chosen], mask, [scores[k] for k in chosen])
        for index, row in zip(indices.tolist(), rows, strict=True):
            if self.singles:
                self.pictures.append(self.folder / f"{index:05d}-{file_name(row.name)}.png")
                figure = figures.score_figure(row, draws=self.draws, where=self.suffix, shown=self.shown)
                with atomic_path(self.pictures[-1]) as partial:
                    figure.save(partial)
            if index in self._on_sheet:
                self._sheet.append(row)

    def write_contact_sheet(self) -> Path | None:
        """Write the contact sheet. Returns its path, None without pictures."""
        if not self._sheet:
            return None
        path = self.folder / "contact_sheet.png"
        with atomic_path(path) as partial:
            figures.contact_sheet(self._sheet, draws=self.draws, where=self.suffix, shown=self.shown).save(partial)
        return path

    def write_table(self) -> Path:
        """Write ``scores.parquet``, a row for each image. Returns its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = pa.list_(pa.float32())
        types = {"path": pa.string(), "rows": pa.int32(), "columns": pa.int32()}
        types |= {"difficulty": numbers, "true_loss": numbers}
        schema = pa.schema([(name, types.get(name, pa.float64())) for name in self._columns()])
        path = self.folder / "scores.parquet"
        with atomic_path(path) as partial:
            pq.write_table(pa.Table.from_pylist([vars(score) for score in self.scores], schema=schema), partial)
        return path

    def write_readme(self) -> None:
        """Write ``README.md``, which explains the files and the columns of the table."""
        columns = "\n".join(f"| `{name}` | {COLUMNS[name].format(draws=self.draws)} |" for name in self._columns())
        note = "" if self.student.has_predictor else f"{NO_PREDICTOR}\n\n"
        text = README.format(images=len(self.scores), note=note, columns=columns)
        write_text_atomically(self.folder / "README.md", text)

    def _columns(self) -> list[str]:
        """Names of the table's columns; those of the prediction are left out without a predictor."""
        return [name for name in COLUMNS if self.student.has_predictor or name not in OF_PREDICTION]

    def _images(self, pixels: Tensor) -> figures.Image:
        """Return images ``[B, C, H, W]`` as ``[B, H, W, C]`` of 8 bits."""
        return to_bytes(pixels, self.student).permute(0, 2, 3, 1).cpu().numpy()

    def _shown(self, images: figures.Image) -> figures.Image:
        """Return the channels of ``[..., C]`` that pictures show."""
        return images if self.show is None else images[..., list(self.show)]

    def _rows(self, pixels: Tensor, masks: Tensor, scores: Sequence[ImageScore]) -> list[figures.ScoreRow]:
        """Reconstruct the masked patches of images ``[B, C, H, W]``, and collect what a picture shows."""
        student = self.student
        latent = student.encode(student.normalize(pixels.to(masks.device)), masks)
        predictions = student.reconstruct(latent, masks).float().cpu().numpy()  # [B, M, T]
        rows = []
        for image, prediction, mask, score in zip(
            self._images(pixels), predictions, masks.cpu().numpy(), scores, strict=True
        ):
            reconstruction = reconstructed(student, image, prediction, mask)
            rows.append(
                figures.ScoreRow(
                    name=score.path,
                    image=self._shown(image),
                    difficulty=score.difficulty,
                    mask=mask,
                    reconstruction=None if reconstruction is None else self._shown(reconstruction),
                    true_loss=score.true_loss,
                    grid=student.grid,
                    difficulty_caption=_caption({"rank correlation": score.spearman, "AUC": score.auc}),
                    true_loss_caption=_caption({"AUC": score.true_loss_auc}),
                )
            )
        return rows


def reconstructed(
    student: HPM, image: figures.Image, prediction: figures.Floats, mask: figures.Bools
) -> figures.Image | None:
    """Return an image whose masked patches are the student's prediction; None if its host predicts no pixels.

    Args:
        student: the model.
        image: uint8 ``[H, W, C]``.
        prediction: of the masked patches, ``[M, T]``, in increasing patch order.
        mask: ``[N]``, True = masked.
    """
    host = student.host
    if not getattr(host, "reconstructs_pixels", False):
        return None
    mean, std = student.mean.cpu().numpy(), student.std.cpu().numpy()
    normalized = bool(getattr(host, "normalize_pixels", False))
    return figures.reconstruction(image, prediction, mask, student.patch_size, mean, std, normalized=normalized)


def shown_channels(show: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    """Return the channels that pictures show: three as red, green and blue, or one as gray; None if they are all.

    Raises:
        UserError: if an index is not one of the image's channels.
    """
    if show is None:
        return None if channels in (1, 3) else (0, 1, 2) if channels > 3 else (0,)
    if len(show) not in (1, 3) or not all(0 <= k < channels for k in show):
        raise UserError(
            f"--show: expected one channel or three, from 0 to {channels - 1}, got {', '.join(map(str, show))}"
        )
    return tuple(show)


def _caption(numbers: dict[str, float | None]) -> str:
    return " · ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)


def file_name(name: str) -> str:
    """Stem of an image's name, with harmless characters only."""
    return re.sub(r"[^\w.-]+", "_", Path(name).stem)[:80]
