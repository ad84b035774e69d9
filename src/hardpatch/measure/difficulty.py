"""What a trained model finds hard: predicted difficulty beside the true loss, image by image (paper, Fig. 2)."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch import figures
from hardpatch.data.augment import EvalTransform
from hardpatch.data.decode import EXTENSIONS, UndecodableImage, decode
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.measure.features import Progress
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import hard_patches, masked_count, random_mask
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import Teacher
from hardpatch.patches import all_masked, gather, to_indices
from hardpatch.randomness import patch_noise

Predict = Literal["whole", "masked"]

SHEET_ROWS = 8
"""Images on the contact sheet."""


@dataclass(frozen=True)
class ScoreSummary:
    """What :func:`score` found; a mean is over the images that have the number, None where none has."""

    images: int
    spearman: float | None
    """Mean rank correlation of predicted difficulty and true loss within an image."""
    auc: float | None
    """Mean area under the ROC curve of predicted difficulty as a detector of the object."""
    true_loss_auc: float | None
    """The same of the true loss: what a perfect predictor would reach."""
    table: Path
    contact_sheet: Path | None
    pictures: tuple[Path, ...]
    bad: tuple[str, ...]
    """One line for each image that could not be read."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            **asdict(self),
            "table": str(self.table),
            "contact_sheet": None if self.contact_sheet is None else str(self.contact_sheet),
            "pictures": [str(path) for path in self.pictures],
        }


@torch.inference_mode()
def score(
    student: HPM,
    teacher: HPM | Teacher,
    source: Source,
    *,
    out: Path,
    masks: Path | None = None,
    target: Target | None = None,
    mask_ratio: float = 0.75,
    draws: int = 10,
    predict: Predict = "whole",
    seed: int = 0,
    pictures: int = 32,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ScoreSummary:
    """Predict every patch's difficulty, measure its true loss, and write pictures and a table of both.

    ``out`` gets ``scores.parquet`` (a row an image), ``contact_sheet.png`` and one picture each of the first images.
    The numbers depend on ``seed`` and an image's place in ``source``, not on how the images are cut into batches.

    Args:
        student: reconstructs; in eval mode, on ``device``.
        teacher: predicts difficulty; may be the student.
        source: images of any size; they are resized and cropped at the center to the size of the model.
        out: a folder; made if it does not exist.
        masks: a folder with a picture for each image, of the same file stem, where the object is anything but black.
            Without it, the masks of the source if it has any (the demo set has).
        target: what is reconstructed where it is another network's; None asks the student.
        mask_ratio: share of the patches that is masked: at random for the true loss, the hardest to reconstruct.
        draws: random masks over which the true loss is averaged.
        predict: ``whole``, what the teacher says of the whole image, which HPM mines; or ``masked``, what the student
            says of each patch where it is masked, mean over the same random masks, which is what it has learned to say.
        seed: of the random masks.
        pictures: how many images get a picture; all are in the table.
        batch_size, workers: of the loading.
        device: where the models are.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: if the model has no loss predictor or gives no finite numbers, if the mask ratio or the number of
            draws makes no sense, if an image's mask is missing, or if ``out`` is no folder.
    """
    if not student.has_predictor:
        raise UserError(
            "model: expected one with a loss predictor, got one trained without; only HPM runs can be scored"
        )
    grid, size, channels = student.grid, student.image_size, len(student.mean)
    patches = grid[0] * grid[1]
    try:
        masked = masked_count(patches, mask_ratio)
    except ValueError as error:
        raise UserError(str(error)) from None
    if draws * masked < patches:
        least = -(-patches // masked)
        raise UserError(f"draws: expected at least {least}, to mask each of {patches} patches once; got {draws}")
    object_mask = _object_masks(source, masks, size)
    where = ", masked" if predict == "masked" else ""

    records: list[dict[str, Any]] = []
    rows: list[figures.ScoreRow] = []
    written: list[Path] = []
    bad: list[str] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: expected a folder that can be written, got {out}: {error.strerror}") from None
    for batch in eval_batches(source, EvalTransform(size, channels), batch_size=batch_size, workers=workers):
        pixels, indices = batch.images.to(device), batch.indices.to(device)
        images = student.normalize(pixels)
        sight = None
        if predict == "whole" or target is not None:
            sight = teacher.look(images, difficulty=predict == "whole")
        whole = all_masked(len(images), patches, images.device)
        goal = student.target(images) if target is None else target(pixels, sight, whole)  # [B, N, ...]
        losses, difficulty = over_masks(
            student, images, indices, goal, masked=masked, draws=draws, seed=seed, predict=predict == "masked"
        )  # [B, N]
        if difficulty is None:
            assert sight is not None
            assert sight.difficulty is not None
            difficulty = sight.difficulty.float()
        if not bool((difficulty.isfinite() & losses.isfinite()).all()):
            raise UserError(
                "model: expected finite losses, got NaN or infinity; its training diverged, take another one"
            )
        both = torch.stack([difficulty, losses], dim=1).cpu()  # [B, 2, N]
        for index, values, maps in zip(batch.indices.tolist(), both, _upsample(both, grid, size), strict=True):
            mask = None if object_mask is None else object_mask(index)
            records.append(_record(source.name(index), values.numpy(), maps.numpy(), mask, grid))

        wanted = max(0, min(len(images), pictures - len(written)))
        hardest = hard_patches(difficulty, torch.zeros_like(difficulty), masked, masked)[:wanted]  # bool [wanted, N]
        if wanted:
            drawn = _figure_rows(student, batch.images, images[:wanted], hardest, records[-len(images) :])
            for index, row in zip(batch.indices.tolist(), drawn, strict=False):
                written.append(out / f"{index:05d}-{_file_name(row.name)}.png")
                figures.score_figure(row, draws=draws, where=where).savefig(written[-1])
            rows += drawn[: SHEET_ROWS - len(rows)]
        bad += batch.bad
        if progress is not None:
            progress(len(records) + len(bad), len(source))

    sheet = out / "contact_sheet.png" if rows else None
    if sheet is not None:
        figures.contact_sheet(rows, draws=draws, where=where).savefig(sheet)
    return ScoreSummary(
        images=len(records),
        spearman=_mean(records, "spearman"),
        auc=_mean(records, "auc"),
        true_loss_auc=_mean(records, "true_loss_auc"),
        table=_write_table(records, out / "scores.parquet"),
        contact_sheet=sheet,
        pictures=tuple(written),
        bad=tuple(bad),
    )


def over_masks(
    model: HPM,
    images: Tensor,
    indices: Tensor,
    target: Tensor,
    *,
    masked: int,
    draws: int,
    seed: int,
    predict: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The reconstruction loss of every patch and, where asked for, what the student foresaw of it: both averaged over
    the random masks in which it was masked.

    A draw takes first the patches that were masked least often, and among those at random. Every single mask is thus
    as random as any, yet all patches are masked equally often, give or take one, and none never, as independent masks
    would leave one patch in a million at 75 % and ten draws.

    Args:
        model: in eval mode.
        images: normalized ``[B, C, H, W]``.
        indices: int64 ``[B]``; with ``seed`` they decide on the masks.
        target: of every patch, ``[B, N, ...]``.
        masked: patches in a mask; ``draws * masked`` must reach N.
        draws: number of masks.
        seed: of the masks.
        predict: foresee the loss, too.

    Returns:
        float32 ``[B, N]`` each; None for what was not asked for.
    """
    total = torch.zeros(target.shape[:2], device=images.device)
    times, foreseen = torch.zeros_like(total), torch.zeros_like(total)
    for draw in range(draws):
        mask = random_mask(patch_noise(seed, draw, indices, total.shape[1]) - times, masked)
        parts = to_indices(mask, masked)
        answer = model.answer(images, parts, predict=predict)
        loss = model.reconstruction_loss(answer.prediction, gather(target, parts.masked))  # [B, M]
        total.scatter_add_(1, parts.masked, loss.float())
        if answer.predicted is not None:
            foreseen.scatter_add_(1, parts.masked, answer.predicted.float())
        times += mask
    return total / times, foreseen / times if predict else None


def find_masks(source: Source, folder: Path) -> list[Path]:
    """The mask of each image of ``source``: the picture below ``folder`` that has its file stem.

    Where several have it, the one in a folder of the same name as the image's.

    Raises:
        UserError: naming the first image whose mask is missing or ambiguous.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(EXTENSIONS):
            found[path.stem].append(path)
    masks: dict[Path, str] = {}
    for index in range(len(source)):
        name = Path(source.name(index))
        candidates = found[name.stem]
        if len(candidates) > 1:
            candidates = [path for path in candidates if path.parent.name == name.parent.name]
        if len(candidates) != 1 or candidates[0] in masks:
            wanted = folder / f"{name.stem}.png"
            got = "no such file" if not found[name.stem] else f"{found[name.stem][0]}, which is not this image's alone"
            raise UserError(
                f"masks: expected one mask for each image, for {name} {wanted}; got {got}; "
                "name masks like their images, in folders named alike where stems repeat"
            )
        masks[candidates[0]] = str(name)
    return list(masks)


def _object_masks(source: Source, folder: Path | None, size: tuple[int, int]) -> Callable[[int], np.ndarray] | None:
    """What gives image i's mask, bool ``[H, W]``, resized and cropped as the image is; None if there are no masks."""
    if folder is None:
        own = getattr(source, "mask", None)
        if own is None:
            return None
        read: Callable[[int], np.ndarray] = own
    else:
        paths = find_masks(source, folder)

        def read(index: int) -> np.ndarray:
            try:
                return decode(paths[index].read_bytes(), channels=1)[..., 0] > 0
            except (OSError, UndecodableImage) as error:
                raise UserError(f"masks: expected a readable picture, got {paths[index]}: {error}") from None

    transform = EvalTransform(size, channels=1)
    return lambda index: transform(read(index)[..., None].astype(np.uint8) * 255)[0].numpy() > 127


def _upsample(values: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``[B, K, N]`` -> ``[B, K, H, W]``, bilinear between the centers of the patches."""
    return F.interpolate(values.unflatten(2, grid), size=size, mode="bilinear", align_corners=False)


def _spearman(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Rank correlation; None where one of the two is constant and has no ranks."""
    from scipy.stats import spearmanr

    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return None
    return float(spearmanr(predicted, true).statistic)


def _aucs(mask: np.ndarray, maps: np.ndarray) -> list[float | None]:
    """Area under the ROC curve of each of ``maps [K, H, W]``; None where the object fills the image or is not in it."""
    from sklearn.metrics import roc_auc_score

    if mask.all() or not mask.any():
        return [None] * len(maps)
    return [float(roc_auc_score(mask.ravel(), values.ravel())) for values in maps]


def _record(
    name: str, values: np.ndarray, maps: np.ndarray, mask: np.ndarray | None, grid: tuple[int, int]
) -> dict[str, Any]:
    """One image's row of the table, from its difficulty and true loss ``[2, N]``, both also as ``maps [2, H, W]``."""
    auc, true_loss_auc = (None, None) if mask is None else _aucs(mask, maps)
    return {
        "path": name.encode(errors="replace").decode(),  # a file's name need not be Unicode, the table's must
        "mean_difficulty": float(values[0].mean()),
        "mean_true_loss": float(values[1].mean()),
        "spearman": _spearman(values[0], values[1]),
        "auc": auc,
        "true_loss_auc": true_loss_auc,
        "difficulty": values[0],
        "true_loss": values[1],
        "rows": grid[0],
        "columns": grid[1],
    }


def _figure_rows(
    student: HPM, pixels: Tensor, images: Tensor, hardest: Tensor, records: list[dict[str, Any]]
) -> list[figures.ScoreRow]:
    """Rows to draw for ``images [B, C, H, W]`` with their ``hardest [B, N]`` patches masked and rebuilt."""
    predictions = student.reconstruct(student.encode(images, hardest), hardest).float().cpu()  # [B, M, T]
    mean, std = student.mean.cpu().numpy(), student.std.cpu().numpy()
    in_pixels = bool(getattr(student.host, "rebuilds_pixels", False))
    normalized = bool(getattr(student.host, "normalize_pixels", False))
    rows = []
    for image, prediction, mask, record in zip(pixels, predictions, hardest.cpu(), records, strict=False):
        image, mask = image.permute(1, 2, 0).numpy(), mask.numpy()
        rebuilt = None
        if in_pixels:
            rebuilt = figures.reconstruction(
                image, prediction.numpy(), mask, student.patch_size, mean, std, normalized=normalized
            )
        rows.append(
            figures.ScoreRow(
                name=record["path"],
                image=image,
                difficulty=record["difficulty"],
                mask=mask,
                reconstruction=rebuilt,
                true_loss=record["true_loss"],
                grid=student.grid,
                difficulty_caption=_caption({"rank correlation": record["spearman"], "AUC": record["auc"]}),
                true_loss_caption=_caption({"AUC": record["true_loss_auc"]}),
            )
        )
    return rows


def _caption(numbers: dict[str, float | None]) -> str:
    return " · ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)


def _file_name(name: str) -> str:
    """The stem of an image's name, of harmless characters only."""
    return re.sub(r"[^\w.-]+", "_", Path(name).stem)[:80]


def _mean(records: list[dict[str, Any]], key: str) -> float | None:
    known = [record[key] for record in records if record[key] is not None]
    return sum(known) / len(known) if known else None


def _write_table(records: list[dict[str, Any]], path: Path) -> Path:
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
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path)
    return path
