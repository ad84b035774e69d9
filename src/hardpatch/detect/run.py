"""Detection with Mask R-CNN on a pre-trained encoder, in a run folder."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hardpatch.curves import training_curves
from hardpatch.data.reading import read_reading
from hardpatch.detect.data import CocoSet, check_images, mask_tools, read_coco
from hardpatch.detect.measure import Precision
from hardpatch.detect.pictures import detection_sheet
from hardpatch.detect.settings import BEFORE, PRESETS, RENAMED, DetectSettings, check
from hardpatch.detect.trainer import KIND, DetectJob, build
from hardpatch.errors import UserError
from hardpatch.files import write_text_atomically
from hardpatch.interchange.backbone import Backbone, load_backbone
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.result import write_result
from hardpatch.train.settings import changed

log = logging.getLogger("hardpatch")

DETECTIONS = "detections.json"
"""File of the detections in the validation images."""
REQUIRED = {
    "run": "weights to start from",
    "train": "a folder of images to learn from",
    "annotations": "annotations of --train in COCO's layout",
    "val": "a folder of images to evaluate on",
    "val_annotations": "annotations of --val in COCO's layout",
}
"""Inputs without which a run cannot start, and what is expected."""
README = """# A detector trained with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting, the data and the weights it started from |
| `result.json` | average precision of boxes and masks on the validation images |
| `detections.json` | the detections in the validation images, as COCO results |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and average precision during training |
| `log.txt` | messages, such as the files that were left out |
| `pictures/` | curves; annotated and detected objects side by side |
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
    """average precision of ``box`` and ``mask`` in [0, 1]; None if the run was interrupted"""
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


class Detector(NamedTuple):
    """Trained detector, and the meaning of its labels."""

    model: nn.Module
    """:func:`~hardpatch.detect.model.mask_rcnn` in eval mode; images must fit ``image_size``"""
    categories: dict[int, str]
    """names by category id, in the order of the labels, which run from 1"""
    image_size: int
    """side of the canvas, pixels"""


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

    Args:
        run: weights to start from: run folder, weights file or checkpoint of a ViT.
        train: folder of images to learn from.
        annotations: annotations of ``train``, a file in COCO's layout.
        val: folder of images to evaluate on.
        val_annotations: annotations of ``val``, a file in COCO's layout.
        out: folder of the run.
        preset: settings to start from, of :data:`~hardpatch.detect.settings.PRESETS`; ``small`` by default.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; silent by default.
        arguments: command line of the call, for the README of the folder.
        settings: settings that differ from the preset, see :class:`~hardpatch.detect.settings.DetectSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; during training if too many
            images cannot be used.
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
    labeled = open_run("detect", out, inputs, PRESETS, preset, settings, resume=resume, required=REQUIRED)
    return _detect(labeled, progress or Silent(), list(arguments))


def _detect(labeled: FolderRun[DetectSettings], progress: Progress, arguments: list[str]) -> DetectResult:
    started = time.monotonic()
    folder, settings, inputs = labeled.folder, labeled.settings, labeled.inputs
    check(settings)
    train = _read("annotations", inputs["annotations"], "train", inputs["train"])
    val = _read("val_annotations", inputs["val_annotations"], "val", inputs["val"])
    if train.categories != val.categories:
        raise UserError(
            f"--val_annotations: expected the {len(train.categories)} categories of {train.path}, {val.path} has others"
        )
    fabric = start_fabric(settings.device, settings.precision, "--")
    newest = checkpoint.newest(folder)
    if newest is None:
        backbone = load_backbone(inputs["run"], settings.weights, drop_path=settings.drop_path, seed=settings.seed)
    else:
        backbone = _backbone(_metadata(newest))
    job = DetectJob(settings, folder, (train, Path(inputs["train"])), (val, Path(inputs["val"])), backbone, fabric)
    if newest is not None:
        job.restore(newest)
    labeled.write("detect", arguments, README)
    log_to(folder / "log.txt")
    for split, coco in (("train", train), ("val", val)):
        log.info("--%s: %s", split, _summary(coco))
    if settings.relative_positions and job.encoder.relative_bias is not None:
        log.info("--relative_positions: RUN has a relative position bias, shared by its blocks; it is trained on")
    signal = fit(job, progress)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return DetectResult(folder, saved, job.step, job.total, signal=signal)
    return _finish(job, labeled, saved, time.monotonic() - started)


def _finish(job: DetectJob, labeled: FolderRun[DetectSettings], saved: Path, seconds: float) -> DetectResult:
    """Write the detections, result.json and the pictures of a finished run."""
    folder, inputs = job.folder, labeled.inputs
    if job.evaluation is None:  # a finished run that is resumed is evaluated again
        job.evaluate()
    assert job.evaluation is not None
    precision, detections = job.evaluation.precision, job.evaluation.detections
    write_text_atomically(folder / DETECTIONS, json.dumps(detections) + "\n")
    result = write_result(
        folder,
        "detect",
        run=inputs["run"],
        data={name: value for name, value in inputs.items() if name != "run"},
        images={"train": job.images, "val": len(job.evaluated_set.images)},
        classes=len(job.train[0].categories),
        left_out={
            "train, objects without extent": job.train[0].dropped,
            "val, objects without extent": job.val[0].dropped,
            "train, undecodable": len(job.bad_files),
            "val, undecodable": len(job.bad_val),
        },
        seconds=seconds,
        steps=job.total,
        detections=len(detections),
        **precision,
    )
    curves = training_curves(read_metrics(folder / "metrics.jsonl"), folder / "pictures" / "curves.png")
    sheet = folder / "pictures" / "detections.png"
    detection_sheet(job.evaluated_set, job.val[1], detections, reading=job.reading).save(sheet)
    return DetectResult(folder, saved, job.step, job.total, precision, detections, (curves, sheet), result=result)


def load_detector(run: str | Path, device: str | torch.device = "cpu") -> Detector:
    """Load the detector of a run folder of ``hardpatch detect``.

    Args:
        run: the folder.
        device: where the detector is put.

    Raises:
        UserError: if the folder has no checkpoint of a detector.
    """
    newest = checkpoint.newest(Path(run))
    if newest is None:
        raise UserError(f"RUN: expected a folder made by hardpatch detect, got {run}")
    metadata = _metadata(newest)
    names = {f.name for f in fields(DetectSettings)}
    values = BEFORE | {name: value for name, value in metadata["detect"].items() if name in names}
    if values.get("steps"):  # an earlier version saved epochs beside them, which it did not use
        values["epochs"] = None
    settings = changed(DetectSettings(), values)
    categories = {int(number): name for number, name in metadata["categories"]}
    model = build(_backbone(metadata), settings, len(categories)).to(device)
    state: dict[str, Tensor] = checkpoint.with_prefix(load_file(newest / checkpoint.WEIGHTS), "student.")
    model.load_state_dict(state)
    return Detector(model.eval(), categories, settings.image_size)


def _metadata(saved: Path) -> dict[str, Any]:
    """Read the metadata of a checkpoint; UserError if it is not a detector's."""
    metadata = checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a folder made by hardpatch detect, {saved} is of another kind")
    if "detect" not in metadata:  # written by an earlier version
        metadata["detect"] = metadata.get("run", {})
    return metadata


def _backbone(metadata: Mapping[str, Any]) -> Backbone:
    """Build the encoder that a checkpoint describes, with new weights."""
    encoder = build_encoder(metadata["encoder"])
    return Backbone(encoder, tuple(metadata["mean"]), tuple(metadata["std"]), read_reading(metadata))


def _read(argument: str, path: str, folder_argument: str, folder: str) -> CocoSet:
    """Read annotations and check that the folder holds all of their images.

    Raises:
        UserError: names the argument of the file or the folder.
    """
    try:
        coco = read_coco(path)
    except UserError as error:
        raise UserError(f"--{argument}: {error}") from None
    try:
        check_images(coco, folder)
    except UserError as error:
        raise UserError(f"--{folder_argument}: {error}") from None
    return coco


def _summary(coco: CocoSet) -> str:
    """Return "N images, K classes, L objects, left out M objects (without extent)"."""
    objects = sum(len(image.objects) for image in coco.images)
    left_out = f", left out {coco.dropped} objects (without extent)" if coco.dropped else ""
    return f"{len(coco.images)} images, {len(coco.categories)} classes, {objects} objects{left_out}"
