"""Images of a set by their difficulty, with neighbors, near-duplicates and outliers: ``hardpatch rank``."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardpatch.choices import Architecture
from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles, nothing_decodable
from hardpatch.data.left_out import counts
from hardpatch.data.sources import OpenedSource
from hardpatch.data.summary import open_described
from hardpatch.data.survey import adapted
from hardpatch.data.workers import resolve_workers
from hardpatch.evaluate.difficulty import RunModels, load_models
from hardpatch.files import remove, write_text_atomically
from hardpatch.measure.cache import FeatureCache
from hardpatch.measure.difficulty import Predict
from hardpatch.measure.features import ProgressCallback
from hardpatch.measure.score import masked_patches
from hardpatch.paths import user_path
from hardpatch.ranges import check_options
from hardpatch.rank.files import summary_values, write_readme, write_sheets
from hardpatch.rank.measure import FixedMasks, ImageMeasure, has_decoder
from hardpatch.rank.neighbors import NoNeighbors, Pairs, duplicate_groups, duplicate_pairs, find_neighbors
from hardpatch.rank.parts import Parts, check_settings
from hardpatch.rank.sheets import Pictures
from hardpatch.rank.signature import Space, compare, spaces_of
from hardpatch.rank.stream import measure_all
from hardpatch.rank.table import Ranking, name_of, write_table
from hardpatch.train.device import use_device
from hardpatch.train.lock import locked
from hardpatch.train.result import head

SUMMARY = "summary.json"
TABLE = "ranks.parquet"
PARTS = "parts"

log = logging.getLogger("hardpatch")


@dataclass(frozen=True)
class RankResult:
    """Result of :func:`rank`."""

    out: Path
    table: Path
    ranking: Ranking = field(repr=False)
    pairs: Pairs | None = field(repr=False)
    """near-duplicates; None if no neighbors were searched"""
    left_out: int
    """number of images that could not be decoded"""
    lines: tuple[str, ...]
    """remarks on what was measured, and how"""
    sheets: tuple[str, ...]
    """names of the contact sheets"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``summary.json``"""


def rank(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    mask_ratio: float | None = None,
    draws: int = 4,
    predict: Predict | None = None,
    seed: int = 0,
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    image_column: str | None = None,
    progress: ProgressCallback | None = None,
) -> RankResult:
    """Rank the images of a set by their difficulty, and find near-duplicates and outliers: ``hardpatch rank``.

    Killed in the middle, the same call goes on, and the files are the same. Memory does not grow with the pixels: see
    docs/rank.md.

    ``run`` is anything that :func:`hardpatch.load` reads; an encoder alone has outliers and neighbors only, a model
    without loss predictor no difficulty. ``out`` is a new folder. The true loss is averaged over ``draws`` random masks
    of ``seed``, the same for every image. The other arguments are those of :func:`hardpatch.score`.

    Raises:
        UserError: for a mistake in the arguments, if too many images cannot be decoded, or ``out`` holds something
            else.
    """
    numbers: dict[str, Any] = {"draws": draws, "seed": seed, "batch_size": batch_size, "workers": workers}
    check_options(**numbers, mask_ratio=mask_ratio, max_bad_fraction=max_bad_fraction)
    started, folder, used_device = time.monotonic(), user_path(out, "--out"), use_device(device)
    said: Any = {"normalize_pixels": normalize_pixels, "architecture": architecture}
    models = load_models(run, predict=predict, device=used_device, decoder=False, **said)
    masks = masks_of(models, mask_ratio, draws, seed) if has_decoder(models) else None
    source = open_described(images, image_column, models.student.reading)
    settings = {"verb": "rank", "mask_ratio": mask_ratio, "predict": models.masking.predict, "batch_size": batch_size}
    settings |= {"draws": draws, "seed": seed, "normalize_pixels": normalize_pixels, "device": used_device.type}
    settings["teacher"] = FeatureCache(folder, models.teacher).weights
    settings = FeatureCache(folder, models.student).describe(source, images, **settings)
    how: dict[str, Any] = {"batch_size": batch_size, "workers": resolve_workers(workers), "progress": progress}
    with locked(folder):
        check_settings(folder, settings, SUMMARY)
        bad_files = BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source)
        result = _rank(folder, models, source, ImageMeasure(models, masks, used_device), bad_files, how)
        values = _values(run, images, source, result, masks, time.monotonic() - started)
        write_text_atomically(folder / SUMMARY, json.dumps(values, indent=2) + "\n")  # last: all is there
        remove(folder / PARTS)
    return replace(result, values=values)


def _rank(
    folder: Path,
    models: RunModels,
    source: OpenedSource,
    measure: ImageMeasure,
    bad_files: BadFiles,
    how: dict[str, Any],
) -> RankResult:
    """Measure all images, compare them, and write all files but the summary."""
    reading = adapted(models.student.reading, source, "IMAGES")
    parts = Parts(folder / PARTS)
    transform = EvalTransform(models.student.image_size, reading)
    measure_all(source, transform, parts, measure, bad_files=bad_files, **how)
    if len(bad_files) == len(source):
        raise nothing_decodable(len(source), parts.bad())
    ranking, pairs, line = _compare(parts)
    lines = [*_remarks(models), line]
    write_table(folder / TABLE, ranking, source)
    sheets = write_sheets(folder, ranking, pairs, Pictures(models.student, source, reading))
    write_readme(folder, ranking, lines, sheets)
    return RankResult(folder, folder / TABLE, ranking, pairs, len(bad_files), tuple(lines), tuple(sheets))


def masks_of(models: RunModels, mask_ratio: float | None, draws: int, seed: int) -> FixedMasks:
    """Return the masks of the true loss; they cover all patches.

    Raises:
        UserError: if the ratio is out of range, or there are too few masks.
    """
    ratio = models.masking.mask_ratio if mask_ratio is None else mask_ratio
    return FixedMasks(masked_patches(models.student, ratio, draws), draws, seed)


def _remarks(models: RunModels) -> list[str]:
    """Say what cannot be measured."""
    if not has_decoder(models):
        return ["RUN has an encoder only: no difficulty, no loss; images are ranked by their outlier score"]
    if not models.student.has_predictor:
        return ["RUN has no loss predictor: there is a true loss, but no predicted difficulty and no gap"]
    return []


def _compare(parts: Parts) -> tuple[Ranking, Pairs | None, str]:
    """Compare all images with each other. Returns the numbers, near-duplicates, and a line on the search."""
    spaces = spaces_of((part["signature"] for part in parts.read(["signature"])) for _ in range(2))
    index = parts.column("index")
    outlier = np.concatenate([compare(spaces, part["signature"]).outlier for part in parts.read(["signature"])])
    log.info("comparing %d images", len(index))
    found, how = find_neighbors(lambda: _vectors(parts, spaces), len(index))
    loss, difficulty = (parts.column(name) if name in parts.names() else None for name in ("loss", "difficulty"))
    if isinstance(found, NoNeighbors):
        return Ranking(index, difficulty, loss, outlier, None, None, None), None, how
    pairs = duplicate_pairs(found, parts.column("thumbnail"))
    groups = duplicate_groups(pairs, len(index))
    nearest, similarity = found.indices[:, 0], found.similarity[:, 0]
    return Ranking(index, difficulty, loss, outlier, nearest, similarity, groups), pairs, how


def _vectors(parts: Parts, spaces: tuple[Space, Space]) -> Iterator[NDArray[np.float32]]:
    """Yield the vectors to compare, part by part."""
    for part in parts.read(["signature"]):
        yield compare(spaces, part["signature"]).vectors


def _values(
    run: str | Path,
    images: str | Sequence[str],
    source: OpenedSource,
    result: RankResult,
    masks: FixedMasks | None,
    seconds: float,
) -> dict[str, Any]:
    """Return the content of ``summary.json``."""
    ranking = result.ranking
    values = head(
        "rank",
        run=str(run),
        data={"images": images},
        images={"images": len(ranking.index)},
        classes=None,
        left_out=counts(source.skipped, result.left_out),
        seconds=seconds,
    )
    values |= summary_values(ranking, result.pairs)
    order = ranking.order(ranking.by)
    values |= {"highest": name_of(source, int(ranking.index[order[0]]))}
    values |= {"lowest": name_of(source, int(ranking.index[order[-1]]))}
    return values | {
        "masks": masks and vars(masks),
        "remarks": list(result.lines),
        "sheets": list(result.sheets),
        "table": str(result.table),
    }
