"""Anomalies: patches that are harder to reconstruct than those of normal images: ``hardpatch anomalies``."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import RunModels, load_models
from hardpatch.files import remove, write_text_atomically
from hardpatch.measure.cache import FeatureCache
from hardpatch.measure.features import ProgressCallback
from hardpatch.measure.object_masks import MaskReader, mask_reader
from hardpatch.paths import user_path
from hardpatch.ranges import check_options
from hardpatch.rank.anomaly_files import AnomalyFiles
from hardpatch.rank.areas import Areas, measure_areas
from hardpatch.rank.measure import PatchMeasure
from hardpatch.rank.normal import Normal, normal_losses
from hardpatch.rank.parts import Parts, check_settings
from hardpatch.rank.run import SUMMARY, masks_of
from hardpatch.rank.sheets import Pictures
from hardpatch.rank.stream import measure_all
from hardpatch.train.device import use_device
from hardpatch.train.lock import locked
from hardpatch.train.result import head

ARGUMENTS = ("--train", "IMAGES")


@dataclass(frozen=True)
class AnomaliesResult:
    """Result of :func:`anomalies`."""

    out: Path
    table: Path
    scores: NDArray[np.float64] = field(repr=False)
    """of the images that could be decoded, ``[n]``"""
    left_out: int
    """number of images that could not be decoded, normal ones not counted"""
    areas: Areas | None
    """areas under ROC curves; None without masks"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``summary.json``"""


def anomalies(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    train: str | Sequence[str],
    masks: str | Path | None = None,
    mask_ratio: float | None = None,
    draws: int = 8,
    seed: int = 0,
    pictures: int = 32,
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    image_column: str | None = None,
    progress: ProgressCallback | None = None,
) -> AnomaliesResult:
    """Score images, patch by patch, by how much harder they are than normal ones: ``hardpatch anomalies``.

    Killed in the middle, the same call goes on, and the files are the same.

    ``train`` are normal images, best those of the run's training. ``masks`` is a folder of masks of the defects with
    the file stems of the images; images without one are normal. ``pictures`` images get a heat map, those of the
    highest scores. The losses are averaged over ``draws`` random masks of ``seed``, the same for every image. The other
    arguments are those of :func:`hardpatch.score`; ``run`` needs a decoder.

    Raises:
        UserError: for a mistake in the arguments, weights without a decoder, or too many undecodable images.
    """
    numbers: dict[str, Any] = {"draws": draws, "seed": seed, "batch_size": batch_size, "workers": workers}
    check_options(**numbers, mask_ratio=mask_ratio, max_bad_fraction=max_bad_fraction, pictures=pictures)
    started, folder, used_device = time.monotonic(), user_path(out, "--out"), use_device(device)
    said: Any = {"normalize_pixels": normalize_pixels, "architecture": architecture}
    models = load_models(run, device=used_device, **said)
    fixed = masks_of(models, mask_ratio, draws, seed)
    sets = _open(models, images, train, image_column)
    read_mask = None
    if masks is not None:
        read_mask = mask_reader(sets[1], user_path(masks, "--masks"), models.student.image_size, optional=True)
    settings = {"verb": "anomalies", "draws": draws, "seed": seed, "mask_ratio": mask_ratio, "batch_size": batch_size}
    settings |= {"normalize_pixels": normalize_pixels, "device": used_device.type, "whole": read_mask is not None}
    cache = FeatureCache(folder, models.student)
    settings |= {"train": cache.describe(sets[0], train), "images": cache.describe(sets[1], images)}
    measure = PatchMeasure(models, fixed, used_device, whole=read_mask is not None)
    how: Any = {"batch_size": batch_size, "workers": resolve_workers(workers)}
    parts, bad = [Parts(folder / "parts" / name) for name in ("normal", "images")], []
    with locked(folder):
        check_settings(folder, settings, SUMMARY)
        for source, argument, own, done in zip(sets, ARGUMENTS, parts, (0, len(sets[0])), strict=True):
            shown = _shifted(progress, done, len(sets[0]) + len(sets[1]))
            bad.append(_measure(source, argument, own, measure, max_bad_fraction, progress=shown, **how))
        files, areas = _write(folder, models, sets[1], parts, read_mask, pictures)
        values = _values(run, {"train": train, "images": images}, sets, bad, time.monotonic() - started)
        values |= files.values | {"masks": vars(fixed), "areas": areas and areas.to_dict()}
        write_text_atomically(folder / SUMMARY, json.dumps(values, indent=2) + "\n")  # last: all is there
        remove(folder / "parts")
    return AnomaliesResult(folder, files.table, files.scores, len(bad[1]), areas, values)


def _write(
    folder: Path,
    models: RunModels,
    source: OpenedSource,
    parts: Sequence[Parts],
    read_mask: MaskReader | None,
    pictures: int,
) -> tuple[AnomalyFiles, Areas | None]:
    """Compare the images with the normal ones, and write all files but the summary."""
    normal = _normal(parts[0], "loss")
    reading = adapted(models.student.reading, source, ARGUMENTS[1])
    files = AnomalyFiles(folder, normal, parts[0], parts[1], Pictures(models.student, source, reading), read_mask)
    areas = None
    if read_mask is not None:
        areas = measure_areas(parts[1], normal, _normal(parts[0], "whole"), models.student, read_mask)
    files.write(pictures, areas)
    return files, areas


def _open(
    models: RunModels, images: str | Sequence[str], train: str | Sequence[str], image_column: str | None
) -> tuple[OpenedSource, OpenedSource]:
    """Open the normal images, and those to score."""
    reading = models.student.reading
    try:
        normal = open_described(train, image_column, reading, argument="--train")
    except UserError as error:
        raise UserError(f"--train: {error}") from None
    if len(normal) < 2:
        raise UserError("--train: expected two normal images or more, to measure how much they differ, got one")
    return normal, open_described(images, image_column, reading)


def _measure(
    source: OpenedSource,
    argument: str,
    parts: Parts,
    measure: PatchMeasure,
    max_bad_fraction: float,
    *,
    batch_size: int,
    workers: int,
    progress: ProgressCallback | None,
) -> BadFiles:
    """Measure one of the two sets. Returns its undecodable images."""
    student = measure.models.student
    transform = EvalTransform(student.image_size, adapted(student.reading, source, argument))
    bad_files = BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source)
    how: Any = {"batch_size": batch_size, "workers": workers, "progress": progress}
    measure_all(source, transform, parts, measure, bad_files=bad_files, **how)
    if len(bad_files) == len(source):
        raise nothing_decodable(len(source), parts.bad())
    return bad_files


def _normal(parts: Parts, column: str) -> Normal:
    """Return the distribution of a column of normal images."""
    return normal_losses(lambda: (part[column] for part in parts.read([column])))


def _shifted(progress: ProgressCallback | None, before: int, total: int) -> ProgressCallback | None:
    """Return a callback that counts from ``before`` on."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def _values(
    run: str | Path,
    paths: dict[str, str | Sequence[str]],
    sets: Sequence[OpenedSource],
    bad: Sequence[BadFiles],
    seconds: float,
) -> dict[str, Any]:
    """Return the first values of ``summary.json``."""
    images = {name: len(source) - len(lost) for name, source, lost in zip(paths, sets, bad, strict=True)}
    left_out = {
        f"{name}: {reason}": count
        for name, source, lost in zip(paths, sets, bad, strict=True)
        for reason, count in counts(source.skipped, len(lost)).items()
    }
    return head("anomalies", run=str(run), data=paths, images=images, classes=None, left_out=left_out, seconds=seconds)
