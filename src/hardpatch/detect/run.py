"""Detection with Mask R-CNN on a pre-trained encoder, in a run folder."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardpatch.curves import training_curves
from hardpatch.data.bands import refuse_bands
from hardpatch.data.folders import FileSource
from hardpatch.data.survey import adapted
from hardpatch.detect.annotations import counts
from hardpatch.detect.extents import REASONS
from hardpatch.detect.file import backbone_of, saved_metadata
from hardpatch.detect.masks import choose_masks, mask_tools
from hardpatch.detect.measure import Precision
from hardpatch.detect.pictures import detection_sheet
from hardpatch.detect.sets import open_sets
from hardpatch.detect.settings import (
    ANNOTATIONS,
    FEW_STEPS,
    MORE_STEPS,
    PRESETS,
    RENAMED,
    DetectSettings,
    check,
    step_learning_rate,
)
from hardpatch.detect.trainer import DetectJob, check_encoder
from hardpatch.detect.verdict import typical_box, verdict
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, optional_file, write_text_atomically
from hardpatch.interchange.backbone import load_backbone
from hardpatch.models.transfer import interpolated
from hardpatch.page.during import RunReport
from hardpatch.processes import is_first, on_first
from hardpatch.train import checkpoint
from hardpatch.train.device import loader_workers, start_fabric_of
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.freeze import trained_line
from hardpatch.train.launch import launch_of
from hardpatch.train.live import LiveProgress
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import logged_pictures, read_metrics
from hardpatch.train.progress import Progress, Silent, counting
from hardpatch.train.result import write_result
from hardpatch.train.run_folder import claimed, resume_point
from hardpatch.train.settings import too_short

log = logging.getLogger("hardpatch")

DETECTIONS = "detections.json"
"""File of the detections in the validation images."""
GROUND_TRUTH = "val_annotations.json"
"""File of the annotations of the validation images in COCO's layout, written if they came in another one."""
REQUIRED = {
    "run": "weights to start from",
    "train": "a folder of images to learn from",
    "annotations": f"annotations of --train ({ANNOTATIONS})",
    "val": "a folder of images to evaluate on",
    "val_annotations": f"annotations of --val ({ANNOTATIONS})",
}
"""Inputs without which a run cannot start, and what is expected."""
README = """# A detector trained with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting, the data and the weights it started from |
| `result.json` | average precision of boxes, and of masks if there are any, on the validation images |
| `detections.json` | the detections in the validation images, as COCO results |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and average precision during training |
| `log.txt` | all that was said, such as the files that were left out |
| `pictures/` | curves; annotated and detected objects side by side |
| `report.html` | all of this as a page, without network |
| `checkpoints/` | weights, and the state to resume from |

If it was interrupted, resume with

    hardpatch detect --resume --out {folder}

In Python, `hardpatch.load_detector("{folder}")` gives the detector.
"""


@dataclass(frozen=True)
class DetectResult:
    """Result of :func:`detect`."""

    folder: Path
    checkpoint: Path
    step: int
    """optimizer steps done"""
    total: int
    precision: Precision | None = None
    """average precision of ``box`` and, if measured, ``mask`` in [0, 1]; None if the run was interrupted"""
    detections: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """COCO results"""
    pictures: tuple[Path, ...] = ()
    signal: int = 0
    """number of the signal that interrupted the run, 0 for none"""
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``result.json``"""

    @property
    def finished(self) -> bool:
        """False if the run was interrupted."""
        return self.step == self.total


def detect(
    run: str | None = None,
    train: str | None = None,
    annotations: str | None = None,
    val: str | None = None,
    val_annotations: str | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> DetectResult:
    """Train Mask R-CNN on a pre-trained encoder, to the end or until SIGINT or SIGTERM: ``hardpatch detect``.

    Without masks it is Faster R-CNN. Every image is decoded once before the first step.

    Args:
        run: weights to start from: run folder, weights file or checkpoint of a ViT.
        train: folder of images to learn from.
        annotations: annotations of ``train``, see :func:`~hardpatch.detect.read.read_annotations`.
        val: folder of images to evaluate on.
        val_annotations: annotations of ``val``.
        out: folder of the run.
        preset: settings to start from, of :data:`~hardpatch.detect.settings.PRESETS`; ``small`` by default.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; silent by default.
        arguments: command line of the call, for the README of the folder.
        settings: settings that differ from the preset, see :class:`~hardpatch.detect.settings.DetectSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; during training if too many
            images cannot be used any more.
        TrainingError: if the loss becomes NaN or infinite.
    """
    if preset in RENAMED:
        raise UserError(f"--preset: {preset} {RENAMED[preset]}")
    mask_tools()  # fails before anything is read
    inputs = {
        "run": run,
        "train": train,
        "annotations": annotations,
        "val": val,
        "val_annotations": val_annotations,
    }
    labeled = open_run(
        *("detect", out, inputs, PRESETS, preset, settings),
        resume=resume,
        required=REQUIRED,
        earlier={"least_steps": None},
        values_of=lambda run, images, step, total: (step_learning_rate(step, total, run),),
    )
    check(labeled.settings)
    with claimed(labeled.folder, resume=resume):
        return launch_of(labeled.settings, _detect, labeled, list(arguments), progress=progress or Silent())


def _detect(labeled: FolderRun[DetectSettings], arguments: list[str], *, progress: Progress) -> DetectResult:
    started = time.monotonic()
    folder, settings, inputs = labeled.folder, labeled.settings, labeled.inputs
    fabric = start_fabric_of(settings)
    newest = resume_point(folder)
    if newest is None:
        backbone = load_backbone(inputs["run"], drop_path=settings.drop_path, **settings.backbone)
    else:
        backbone = backbone_of(saved_metadata(newest))
    check_encoder(backbone, settings)
    refuse_bands(backbone.reading)
    shown = counting("images decoded") if isinstance(progress, LiveProgress) else nullcontext(lambda *_: None)
    with shown as count:
        train, val = open_sets(
            inputs,
            reading=backbone.reading,
            threads=loader_workers(settings.workers),
            max_bad_fraction=settings.max_bad_fraction,
            count=count,
        )
    masks = choose_masks(settings.masks, train.annotations, val.annotations)
    if newest is None:
        files = FileSource(str(train.folder), [image.file for image in train.annotations.images])
        backbone = backbone._replace(reading=adapted(backbone.reading, files, "--train"))
    else:
        _compare(saved_metadata(newest), masks.trained, folder)
    sets = (masks.train, train.folder), (masks.val, val.folder)
    job = DetectJob(
        settings, folder, *sets, backbone, fabric, (masks.trained, masks.measured), bad=(len(train.bad), len(val.bad))
    )
    if newest is not None:
        job.restore(newest)
    if is_first():
        labeled.write("detect", arguments, README)
        log_to(folder / "log.txt", arguments)
    job.bad_files.keep_in(folder / "undecodable.txt")
    job.bad_files.update(train.bad)
    job.bad_val.update(val.bad)
    masked = (f"--masks {settings.masks}: {line}" for line in masks.lines)
    resized = interpolated(job.encoder, (settings.image_size, settings.image_size)) if newest is None else []
    for line in (*train.lines, *val.lines, *masked, *resized, *trained_line(job.model, job.frozen)):
        log.info(line)
    if newest is not None and saved_metadata(newest).get("images", job.images) != job.images:
        log.info("--resume: %d images can be used now, another number than before: their order differs", job.images)
    if settings.relative_positions and job.encoder.relative_bias is not None:
        log.info("--relative_positions: RUN has a relative position bias, shared by its blocks; it is trained on")
    if newest is None and (short := too_short(settings, job.images, FEW_STEPS, MORE_STEPS)) is not None:
        log.warning(short)
    report = RunReport(folder, settings.report)
    signal = fit(job, progress, report.after_evaluation)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return report.at_end(DetectResult(folder, saved, job.step, job.total, signal=signal))
    if job.evaluation is None:  # a finished run that is resumed is evaluated again
        job.evaluate()
    return report.at_end(on_first(lambda: _finish(job, labeled, saved, time.monotonic() - started)))


def _finish(job: DetectJob, labeled: FolderRun[DetectSettings], saved: Path, seconds: float) -> DetectResult:
    """Write the detections, result.json and the pictures of a finished run."""
    folder, inputs = job.folder, labeled.inputs
    assert job.evaluation is not None
    precision, detections = job.evaluation.precision, job.evaluation.detections
    sets = (("train", job.train[0]), ("val", job.evaluated_set))
    typical = typical_box(job.train[0], job.evaluated_set)
    training = f"{job.total:,} steps of {job.batch_size} images; {MORE_STEPS}"
    write_text_atomically(folder / DETECTIONS, json.dumps(detections) + "\n")
    if job.val[0].format != "COCO JSON":
        write_text_atomically(folder / GROUND_TRUTH, json.dumps(job.evaluated_set.ground_truth()) + "\n")
    result = write_result(
        folder,
        "detect",
        run=inputs["run"],
        data={name: value for name, value in inputs.items() if name != "run"},
        images={"train": job.images, "val": len(job.evaluated_set.images)},
        classes=len(job.train[0].categories),
        left_out={
            **{
                f"{split}, objects {reason}": annotations.left_out.get(reason, 0)
                for split, annotations in sets
                for reason in REASONS
            },
            "train, undecodable": len(job.bad_files),
            "val, undecodable": len(job.bad_val),
        },
        formats={split: annotations.format for split, annotations in sets},
        used={split: counts(annotations) for split, annotations in sets},
        masks=job.masks,
        seconds=seconds,
        steps=job.total,
        detections=len(detections),
        verdict=verdict(precision, detections, job.evaluated_set, typical, training).to_dict(),
        typical_box_AP=typical,
        **precision,
    )
    pictures: tuple[Path, ...] = ()
    with optional_file(folder / "pictures"), logged_pictures(folder, job.step, labeled.settings.logger):
        curves = training_curves(read_metrics(folder / "metrics.jsonl"), folder / "pictures" / "curves.png")
        with atomic_path(sheet := folder / "pictures" / "detections.png") as partial:
            detection_sheet(job.evaluated_set, job.val[1], detections, reading=job.reading).save(partial)
        pictures = curves, sheet
    return DetectResult(folder, saved, job.step, job.total, precision, detections, pictures, result=result)


def _compare(metadata: Mapping[str, Any], masks: bool, folder: Path) -> None:
    """Refuse to resume on annotations with which the detector would have other heads.

    Raises:
        UserError: says which.
    """
    if metadata.get("masks", True) != masks:
        heads = {True: "with a mask head", False: "without a mask head"}
        raise UserError(
            f"--resume: {folder} was begun {heads[not masks]}, and with its annotations of now it would be "
            f"{heads[masks]}; restore them, or take another --out"
        )
