"""Fine-tuning: a pre-trained encoder and a linear layer trained together on labels (the paper's Table S2)."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from hardpatch.curves import training_curves
from hardpatch.data.sources import Source, open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from hardpatch.finetune.measure import confusion_figure, report
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import PRESETS, FinetuneSettings, check
from hardpatch.finetune.trainer import KIND, FinetuneJob
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.load import weights_file
from hardpatch.measure.features import align_labels
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.transfer import unshare_relative_bias
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.result import write_result

log = logging.getLogger("hardpatch")

REQUIRED = {
    "run": "a pre-trained encoder to start from",
    "train": "labeled images to learn from",
    "val": "labeled images to evaluate on",
}
README = """# A network fine-tuned with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | one JSON object per line: loss and learning rate, or loss, top-1 and top-5 of an evaluation |
| `result.json` | the result after the last epoch: top-1, top-5, accuracy of each class, the most frequent confusions |
| `tensorboard/` | the metrics for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights, names of the classes; `training.safetensors`: optimizer |
| `pictures/` | `curves.png`; `confusion.png`: the confusion matrix |

If it was interrupted, run this to resume:

    hardpatch finetune --resume --out {folder}

In Python, `hardpatch.load_classifier("{folder}")` loads the network.
"""


@dataclass(frozen=True)
class FinetuneResult:
    """Result of :func:`finetune`. Accuracies are shares in [0, 1], NaN if it was interrupted."""

    folder: Path
    checkpoint: Path
    step: int
    """optimizer steps done"""
    total: int
    top1: float = math.nan
    """after the last epoch: the result"""
    top5: float = math.nan
    best_top1: float = math.nan
    """best of all evaluations; it is too high, since it is chosen on the images that it is measured on"""
    best_epoch: float = math.nan
    signal: int = 0
    """signal that interrupted it, 0 for none"""
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``result.json``"""

    @property
    def finished(self) -> bool:
        """True unless the run was interrupted."""
        return self.step == self.total


class LoadedClassifier(NamedTuple):
    """A fine-tuned network, the names of its classes, and its image size."""

    model: Classifier
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) of the images that it was trained on, in pixels"""


def finetune(
    run: str | Path | None = None,
    train: str | Path | None = None,
    val: str | Path | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> FinetuneResult:
    """Train a pre-trained encoder and a linear layer on labels: ``hardpatch finetune``.

    Training ends early, with a checkpoint, on SIGINT or SIGTERM.

    Args:
        run: the encoder: run folder, weights file, reference checkpoint or timm's weights.
        train: labeled images to learn from: one folder for each class, or Parquet files with labels.
        val: labeled images to evaluate on. Their classes are those of ``train`` by name.
        out: folder of the run.
        preset: name in :data:`~hardpatch.finetune.settings.PRESETS`; ``small`` by default.
        resume: continue the run in ``out``; no other argument is needed then.
        progress: shows steps and metrics; silent by default.
        arguments: command line of this call, for the folder's README.
        settings: settings that differ from the preset, see :class:`~hardpatch.finetune.settings.FinetuneSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; later if too many images
            cannot be decoded.
        TrainingError: if the loss becomes NaN or infinite.
    """
    inputs = {"run": run, "train": train, "val": val}
    folder_run = open_run("finetune", out, inputs, PRESETS, preset, settings, resume=resume, required=REQUIRED)
    return _finetune(folder_run, progress or Silent(), list(arguments))


def _finetune(folder_run: FolderRun[FinetuneSettings], progress: Progress, arguments: list[str]) -> FinetuneResult:
    started = time.monotonic()
    folder, settings, inputs = folder_run.folder, folder_run.settings, folder_run.inputs
    train, val = _open("--train", inputs["train"]), _open("--val", inputs["val"])
    check(settings, len(train))
    classes, val_labels = align_labels(train, val)
    if len(classes) < 2:
        raise UserError(f"--train: expected two classes or more, got one, {classes[0]!r}")
    fabric = start_fabric(settings.device, settings.precision, "--")
    newest = checkpoint.newest(folder)
    # A resumed run does not read the encoder that it started from, which may be gone or trained further.
    model = _initial(folder_run, len(classes)) if newest is None else load_classifier(newest).model
    job = FinetuneJob(settings, folder, train, val, classes, val_labels, model, fabric)
    if newest is not None:
        job.restore(newest)
    folder_run.write("finetune", arguments, README)
    log_to(folder / "log.txt")
    for name, source in (("--train", train), ("--val", val)):
        log.info("%s: %s", name, summarize(source))
    if len(train) < settings.batch_size:
        log.warning("%d images are fewer than a batch of %d; see --preset", len(train), settings.batch_size)
    signal = fit(job, progress)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return FinetuneResult(folder, saved, job.step, job.total, signal=signal)
    return _finish(job, folder_run, saved, time.monotonic() - started)


def _finish(job: FinetuneJob, folder_run: FolderRun[FinetuneSettings], saved: Path, seconds: float) -> FinetuneResult:
    """Write result.json and the pictures."""
    folder, classes, inputs = job.folder, job.classes, folder_run.inputs
    if job.evaluation is None:  # a finished run is evaluated again when it is resumed
        job.evaluate()
    evaluation = job.evaluation
    assert evaluation is not None
    rows = read_metrics(folder / "metrics.jsonl")
    best = max((row for row in rows if "top1" in row), key=lambda row: row["top1"])
    result = write_result(
        folder,
        "finetune",
        run=inputs["run"],
        data={"train": inputs["train"], "val": inputs["val"]},
        images={"train": job.images, "val": evaluation.images},
        classes=len(classes),
        left_out={
            "train, not images": len(job.source.skipped),
            "val, not images": len(job.val.skipped),
            "train, undecodable": len(job.bad_files),
            "val, undecodable": len(job.bad_val),
        },
        seconds=seconds,
        steps=job.total,
        **report(evaluation, classes, best["top1"], best["epoch"]),
    )
    training_curves(rows, folder / "pictures" / "curves.png")
    confusion_figure(evaluation.confusion, classes).savefig(folder / "pictures" / "confusion.png")
    return FinetuneResult(
        folder,
        saved,
        job.step,
        job.total,
        evaluation.top1,
        evaluation.top5,
        best["top1"],
        best["epoch"],
        result=result,
    )


def load_classifier(path: str | Path) -> LoadedClassifier:
    """Load a fine-tuned network in eval mode.

    ``model(model.normalize(images))`` classifies images, uint8 ``[B, C, H, W]``: scores ``[B, classes]``.

    Args:
        path: a run folder of :func:`finetune` (its newest checkpoint), a checkpoint's folder, or its
            ``model.safetensors``. If the run has a moving average of its weights, the average is loaded.

    Raises:
        UserError: if there is no such file, or it holds another kind of network.
    """
    file = weights_file(path)
    metadata = (checkpoint.read_metadata(file) if file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a network of hardpatch finetune, {file} is of another kind")
    state = load_file(file)
    weights = checkpoint.with_prefix(state, "teacher.") or checkpoint.with_prefix(state, "student.")
    size = (metadata["image_size"][0], metadata["image_size"][1])
    model = Classifier(
        build_encoder(metadata["encoder"]),
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        drop_path=metadata["finetune"]["drop_path"],
    )
    model.load_state_dict(weights)
    return LoadedClassifier(model.eval(), tuple(metadata["classes"]), size)


def _initial(folder_run: FolderRun[FinetuneSettings], classes: int) -> Classifier:
    """Build the network that a run starts from.

    Raises:
        UserError: if the weights cannot be loaded or the image size does not fit.
    """
    settings = folder_run.settings
    encoder, mean, std = load_backbone(folder_run.inputs["run"], settings.weights, seed=settings.seed)
    unshare_relative_bias(encoder)
    size = None if settings.image_size is None else (settings.image_size, settings.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            return Classifier(encoder, classes, mean=mean, std=std, image_size=size, drop_path=settings.drop_path)
        except ValueError as error:
            raise UserError(f"--image_size: {error}") from None


def _open(argument: str, path: str) -> Source:
    try:
        return open_source(path)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None
