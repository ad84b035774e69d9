"""Segmentation of images with UperNet on a pre-trained encoder, in a run folder."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hardpatch.data.bands import refuse_bands
from hardpatch.data.folders import FileSource
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.files import optional_file
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.finetuned import SEGMENTER
from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.transfer import add_layer_scale, add_relative_bias, interpolated, train_positions
from hardpatch.page.during import RunReport
from hardpatch.processes import is_first, on_first
from hardpatch.ranges import check_options
from hardpatch.segment.check import check_sets
from hardpatch.segment.data import SegmentationSet, open_segmentation
from hardpatch.segment.file import save_segmenter
from hardpatch.segment.labels import Labels, find_labels
from hardpatch.segment.measure import EvaluationResult
from hardpatch.segment.model import BLOCKS, UperNet
from hardpatch.segment.pictures import write_pictures
from hardpatch.segment.settings import FEW_STEPS, LARGE, PRESETS, RENAMED, SegmentSettings, resolved
from hardpatch.segment.settings import check as check_settings
from hardpatch.segment.trainer import SegmentJob, of_checkpoint, rate_of
from hardpatch.segment.verdict import majority, verdict
from hardpatch.train import checkpoint
from hardpatch.train.device import loader_workers, start_fabric_of
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.freeze import freeze, trained_line
from hardpatch.train.launch import launch_of
from hardpatch.train.live import LiveProgress
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.memory import bytes_per_parameter, check_memory
from hardpatch.train.metrics import logged_pictures
from hardpatch.train.progress import Progress, Silent, counting
from hardpatch.train.result import write_result
from hardpatch.train.run_folder import claimed, resume_point
from hardpatch.train.settings import check_loop, too_short

log = logging.getLogger("hardpatch")

REQUIRED = {
    "run": "weights to start from",
    "train": "a folder of images and label maps to learn from",
    "val": "a folder of images and label maps to evaluate on",
}
README = """# A segmenter trained with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting, the data and the weights it started from |
| `result.json` | mIoU, mean and pixel accuracy on the validation images, a verdict, and the values of each class |
| `segmenter.safetensors` | encoder and heads |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and measures during training |
| `log.txt` | all that was said, such as the files that were left out |
| `pictures/` | curves; images beside their true and their predicted classes |
| `report.html` | all of this as a page, without network |
| `checkpoints/` | the state to resume from |

If it was interrupted, resume with

    hardpatch segment --resume --out {folder}

In Python, `hardpatch.load_segmenter("{folder}")` gives the network.
"""


@dataclass(frozen=True)
class SegmentResult:
    """Result of :func:`segment`. Measures are in [0, 1], NaN if the run was interrupted."""

    folder: Path
    checkpoint: Path
    step: int
    """optimizer steps done"""
    total: int
    miou: float = math.nan
    mean_accuracy: float = math.nan
    pixel_accuracy: float = math.nan
    classes: tuple[str, ...] = ()
    evaluation: EvaluationResult | None = field(default=None, repr=False)
    pictures: tuple[Path, ...] = ()
    signal: int = 0
    """number of the signal that interrupted the run, 0 for none"""
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``result.json``"""

    @property
    def finished(self) -> bool:
        """False if the run was interrupted."""
        return self.step == self.total


def segment(
    run: str | None = None,
    train: str | None = None,
    val: str | None = None,
    out: str | Path | None = None,
    *,
    classes: str | None = None,
    ignore: Sequence[int] | None = None,
    reduce_zero_label: bool | None = None,
    threshold: int | None = None,
    label_suffix: str | None = None,
    preset: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> SegmentResult:
    """Train UperNet on a pre-trained encoder, to the end or until SIGINT or SIGTERM: ``hardpatch segment``.

    Args:
        run: weights to start from: run folder, weights file or checkpoint of a ViT.
        train: folder of images and label maps to learn from, see
            :func:`~hardpatch.segment.data.open_segmentation`.
        val: folder of images and label maps to evaluate on.
        out: folder of the run.
        classes: number of classes, or a file of their names; ``classes.txt`` of ``train`` by default.
        ignore: label values whose pixels are ignored; 255 by default, except in masks of 0 and 255.
        reduce_zero_label: 0 is ignored and 1 is the first class; on for ADE20K's folders.
        threshold: masks of two classes are read as below it and from it on, JPEG files too; by default exactly.
        label_suffix: what follows the stem of an image in that of its label map; found by default.
        preset: settings to start from, of :data:`~hardpatch.segment.settings.PRESETS`; ``small`` by default.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; silent by default.
        arguments: command line of the call, for the README of the folder.
        settings: settings that differ from the preset, see :class:`~hardpatch.segment.settings.SegmentSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; during training if too many
            files cannot be decoded.
        TrainingError: if the loss becomes NaN or infinite.
    """
    inputs = {
        "run": run,
        "train": train,
        "val": val,
        "classes": classes,
        "ignore": None if ignore is None else list(ignore),
        "reduce_zero_label": reduce_zero_label,
        "threshold": threshold,
        "label_suffix": label_suffix,
    }
    check_options(ignore=inputs["ignore"], threshold=threshold)
    if preset in RENAMED:
        raise UserError(f"--preset: {preset} {RENAMED[preset]}")
    settings |= _squares(settings)
    more: dict[str, Any] = {"resume": resume, "required": REQUIRED, "values_of": rate_of(out)}
    labeled = open_run("segment", out, inputs, PRESETS, preset, settings, **more)
    check_loop(labeled.settings)
    with claimed(labeled.folder, resume=resume):
        return launch_of(labeled.settings, _segment, labeled, list(arguments), progress=progress or Silent())


def _squares(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return crop and stride, if they are set, as two sides; one number stands for a square."""
    sides = {
        name: list(settings[name]) if isinstance(settings[name], Sequence) else [settings[name]]
        for name in {"crop", "stride"} & settings.keys()
    }
    return {name: 2 * found if len(found) == 1 else found for name, found in sides.items()}


def _segment(labeled: FolderRun[SegmentSettings], arguments: list[str], *, progress: Progress) -> SegmentResult:
    started, folder, settings, inputs = time.monotonic(), labeled.folder, labeled.settings, labeled.inputs
    labels = find_labels(
        inputs["train"], inputs["classes"], inputs["ignore"], inputs["reduce_zero_label"], inputs["threshold"]
    )
    fabric = start_fabric_of(settings)
    newest = resume_point(folder)
    train = open_segmentation(inputs["train"], "train", labels, inputs["label_suffix"])
    val = open_segmentation(inputs["val"], "val", labels, inputs["label_suffix"])
    resized: list[str] = []
    if newest is None:
        model, resized = _initial(labeled, labels, train)
    else:
        model = of_checkpoint(newest, settings, labels)
    settings, frozen = resolved(settings, len(model.encoder.blocks)), freeze(model.encoder, settings.freeze)
    check_settings(settings, model.encoder.patch_size, len(train))
    quiet = not isinstance(progress, LiveProgress)
    with nullcontext(lambda done, total: None) if quiet else counting("pairs checked") as checking:
        # refuses before anything is written
        checked = check_sets(
            {"train": train, "val": val},
            model.reading,
            max_bad_fraction=settings.max_bad_fraction,
            workers=loader_workers(settings.workers),
            progress=checking,
        )
    train, val = checked.sets["train"], checked.sets["val"]
    if is_first():
        labeled.write("segment", arguments, README)
        log_to(folder / "log.txt", arguments)
    for split, pairs in checked.sets.items():
        unreadable = checked.unreadable[split]
        left_out = f", left out {len(unreadable)} that cannot be decoded" if unreadable else ""
        log.info("--%s: %d images, %d classes%s", split, len(pairs), len(labels.names), left_out)
    for line in checked.said:
        log.info(line)
    for line in checked.warnings:
        log.warning(line)
    short = too_short(settings, len(train), FEW_STEPS, f"--preset small takes {PRESETS['small'].steps:,}")
    if short is not None and newest is None:
        log.warning(short)
    bad = list(checked.unreadable["train"].values()), list(checked.unreadable["val"].values())
    job = SegmentJob(settings, folder, train, val, model, fabric, bad)
    for line in (*resized, *choices(labeled.settings, model), *trained_line(model, frozen)):
        log.info(line)
    if newest is not None:
        job.restore(newest)
    report = RunReport(folder, settings.report)
    signal = fit(job, progress, report.after_evaluation)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return report.at_end(SegmentResult(folder, saved, job.step, job.total, signal=signal))
    if job.evaluation is None:  # a finished run that is resumed is evaluated again
        job.evaluate()
    job.whole_model.gather()
    pixels = checked.pixels["train"]
    return report.at_end(on_first(lambda: _finish(job, labeled, saved, pixels, time.monotonic() - started)))


def _finish(
    job: SegmentJob, labeled: FolderRun[SegmentSettings], saved: Path, pixels: npt.NDArray[np.int64], seconds: float
) -> SegmentResult:
    """Write the segmenter, result.json and the pictures of a finished run."""
    folder, inputs, names = job.folder, labeled.inputs, job.train.labels.names
    assert job.evaluation is not None
    save_segmenter(folder / SEGMENTER, job.whole_model.current, names, job.inference)
    measures = job.evaluation.measures
    trivial = majority(measures, names, pixels.tolist())
    result = write_result(
        folder,
        "segment",
        run=inputs["run"],
        data={"train": inputs["train"], "val": inputs["val"]},
        images={"train": len(job.train), "val": job.bad_val.total - len(job.bad_val)},
        classes=len(names),
        left_out={"train, undecodable": len(job.bad_files), "val, undecodable": len(job.bad_val)},
        seconds=seconds,
        steps=job.total,
        inference=job.inference.mode,
        train_pixels={name: int(count) for name, count in zip(names, pixels, strict=True)},
        verdict=verdict(measures, names, trivial).to_dict(),
        one_class_everywhere=trivial,
        **measures.to_dict(names),
    )
    pictures: tuple[Path, ...] = ()
    with optional_file(folder / "pictures"), logged_pictures(folder, job.step, labeled.settings.logger):
        pictures = tuple(write_pictures(folder, job.evaluation, job.val, job.model.reading))
    return SegmentResult(
        *(folder, saved, job.step, job.total),
        *(measures.miou, measures.mean_accuracy, measures.pixel_accuracy),
        names,
        job.evaluation,
        pictures,
        result=result,
    )


def _initial(labeled: FolderRun[SegmentSettings], labels: Labels, train: SegmentationSet) -> tuple[UperNet, list[str]]:
    """Build the network of a new run on images of ``train``; also return what is said of its positions.

    Raises:
        UserError: if the weights cannot be loaded, or the settings or sizes do not fit.
    """
    settings = labeled.settings
    backbone = load_backbone(labeled.inputs["run"], drop_path=settings.drop_path, **settings.backbone)
    encoder = backbone.encoder
    refuse_bands(backbone.reading)
    check_settings(resolved(settings, len(encoder.blocks)), encoder.patch_size, len(train))
    reading = adapted(backbone.reading, FileSource("", [str(path) for path in train.images]), "--train")
    patches = settings.crop[0] * settings.crop[1] // encoder.patch_size**2
    pairs = len(encoder.blocks) * patches**2 if settings.relative_positions else 0
    need = bytes_per_parameter(settings.device) * 99 * settings.channels**2 + 8 * pairs
    check_memory(need, "--channels, --crop", "a network")
    resized = interpolated(encoder, (settings.crop[0], settings.crop[1]))
    _transfer(encoder, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            network = UperNet(
                encoder,
                len(labels.names),
                mean=backbone.mean,
                std=backbone.std,
                reading=reading,
                channels=settings.channels,
                blocks=settings.blocks,
                dropout=settings.dropout,
            )
        except ValueError as error:
            raise UserError(f"--{error}") from None
    return network, resized


def _transfer(encoder: Encoder, settings: SegmentSettings) -> None:
    """Give the encoder what the settings add for this task, on the grid of the crop."""
    grid = patch_grid((settings.crop[0], settings.crop[1]), encoder.patch_size)
    if settings.train_positions:
        train_positions(encoder, grid)
    if settings.relative_positions:
        add_relative_bias(encoder, grid)
    if settings.layer_scale:
        add_layer_scale(encoder)


def choices(asked: SegmentSettings, model: UperNet) -> list[str]:
    """Return a line for each setting that the encoder decided."""
    depth, lines = len(model.encoder.blocks), []
    if asked.lr is None:
        size = f"{depth} blocks, as the paper for ViT-L" if depth >= LARGE else f"fewer than {LARGE} blocks"
        small = depth >= LARGE and asked.layer_decay == SegmentSettings.layer_decay
        decay = f"; layer decay {asked.layer_decay} is mmsegmentation's for MAE's ViT-B, set another" if small else ""
        lines.append(f"--lr {resolved(asked, depth).lr:g} for an encoder of {size}{decay}")
    if asked.blocks is None:
        reason = "as in mmsegmentation" if depth in BLOCKS else "evenly spread"
        lines.append(f"--blocks {' '.join(map(str, model.blocks))}: maps after these blocks, {reason}")
    if asked.relative_positions and model.encoder.relative_bias is not None:
        lines.append("--relative_positions: RUN has a relative position bias, shared by its blocks; it is trained on")
    return lines
