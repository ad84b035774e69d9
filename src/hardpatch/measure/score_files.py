"""Pictures, contact sheet and Parquet table of the difficulty of images."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hardpatch import figures
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.files import atomic_path
from hardpatch.measure.difficulty import ImageScore, PatchDifficulty, Predict
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mining import hard_patches

SHEET_ROWS = 8
"""Images on the contact sheet."""


class ScoreFiles:
    """Files of one call of :func:`~hardpatch.measure.score.score`.

    Args:
        folder: where to write; created if it does not exist.
        student: the model that reconstructs.
        masked: number of patches masked for the reconstruction, the hardest ones.
        limit: number of images with a picture.
        draws: random masks over which the true loss was averaged, for the titles.
        predict: source of the predicted difficulty, for the titles.

    Raises:
        UserError: if the folder cannot be created.
    """

    def __init__(self, folder: Path, student: HPM, masked: int, limit: int, *, draws: int, predict: Predict) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: expected a folder that can be written, got {folder}: {error.strerror}") from None
        self.folder, self.student, self.masked, self.limit, self.draws = folder, student, masked, limit, draws
        self.suffix = ", masked" if predict == "masked" else ""
        self.scores: list[ImageScore] = []
        self.pictures: list[Path] = []
        self._sheet: list[figures.ScoreRow] = []

    def add(self, batch: Batch, difficulty: PatchDifficulty, scores: Sequence[ImageScore]) -> None:
        """Take the scores of a batch, and draw its images until the limit is reached."""
        self.scores += scores
        count = min(len(scores), self.limit - len(self.pictures))
        if count <= 0:
            return
        noise = torch.zeros_like(difficulty.predicted)
        hardest = hard_patches(difficulty.predicted, noise, self.masked, self.masked)[:count]  # bool [count, N]
        rows = self._rows(batch.images[:count], hardest, scores[:count])
        for index, row in zip(batch.indices.tolist(), rows, strict=False):
            self.pictures.append(self.folder / f"{index:05d}-{_file_name(row.name)}.png")
            figures.score_figure(row, draws=self.draws, where=self.suffix).savefig(self.pictures[-1])
        self._sheet += rows[: SHEET_ROWS - len(self._sheet)]

    def write_contact_sheet(self) -> Path | None:
        """Write the contact sheet. Returns its path, None without pictures."""
        if not self._sheet:
            return None
        path = self.folder / "contact_sheet.png"
        with atomic_path(path) as partial:
            figures.contact_sheet(self._sheet, draws=self.draws, where=self.suffix).savefig(partial)
        return path

    def write_table(self) -> Path:
        """Write ``scores.parquet``, a row for each image. Returns its path."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = pa.list_(pa.float32())
        schema = pa.schema(
            [
                ("path", pa.string()),
                ("mean_difficulty", pa.float64()),
                ("mean_true_loss", pa.float64()),
                ("spearman", pa.float64()),
                ("auc", pa.float64()),
                ("true_loss_auc", pa.float64()),
                ("difficulty", numbers),
                ("true_loss", numbers),
                ("rows", pa.int32()),
                ("columns", pa.int32()),
            ]
        )
        path = self.folder / "scores.parquet"
        with atomic_path(path) as partial:
            pq.write_table(pa.Table.from_pylist([vars(score) for score in self.scores], schema=schema), partial)
        return path

    def _rows(self, pixels: Tensor, hardest: Tensor, scores: Sequence[ImageScore]) -> list[figures.ScoreRow]:
        """Reconstruct the hardest patches of uint8 images ``[B, C, H, W]``, and collect what a picture shows."""
        student, host = self.student, self.student.host
        latent = student.encode(student.normalize(pixels.to(hardest.device)), hardest)
        predictions = student.reconstruct(latent, hardest).float().cpu().numpy()  # [B, M, T]
        mean, std = student.mean.cpu().numpy(), student.std.cpu().numpy()
        in_pixels = bool(getattr(host, "reconstructs_pixels", False))
        normalized = bool(getattr(host, "normalize_pixels", False))
        images, masks = pixels.permute(0, 2, 3, 1).numpy(), hardest.cpu().numpy()
        rows = []
        for image, prediction, mask, score in zip(images, predictions, masks, scores, strict=True):
            reconstruction = None
            if in_pixels:
                reconstruction = figures.reconstruction(
                    image, prediction, mask, student.patch_size, mean, std, normalized=normalized
                )
            rows.append(
                figures.ScoreRow(
                    name=score.path,
                    image=image,
                    difficulty=score.difficulty,
                    mask=mask,
                    reconstruction=reconstruction,
                    true_loss=score.true_loss,
                    grid=student.grid,
                    difficulty_caption=_caption({"rank correlation": score.spearman, "AUC": score.auc}),
                    true_loss_caption=_caption({"AUC": score.true_loss_auc}),
                )
            )
        return rows


def _caption(numbers: dict[str, float | None]) -> str:
    return " · ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)


def _file_name(name: str) -> str:
    """Stem of an image's name, with harmless characters only."""
    return re.sub(r"[^\w.-]+", "_", Path(name).stem)[:80]
