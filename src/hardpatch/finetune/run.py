"""Fine-tuning and linear probing: a linear layer trained on labels, with the encoder (Table S2) or without (S3)."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from hardpatch.curves import training_curves
from hardpatch.data.bands import as_read
from hardpatch.data.columns import Columns
from hardpatch.data.left_out import counts
from hardpatch.data.reading import read_reading
from hardpatch.data.sources import OpenedSource, Paths, Source, open_source
from hardpatch.data.splits import Role
from hardpatch.data.summary import summarize
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.finetune.measure import confusion_figure, report
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.scratch import describe, random_encoder
from hardpatch.finetune.settings import PRESETS, PROBES, FinetuneSettings, check
from hardpatch.finetune.trainer import KIND, FinetuneJob
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.load import weights_file
from hardpatch.measure.features import align_labels
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.transfer import unshare_relative_bias
from hardpatch.pretrain.sections import RunConfig
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
README = """# A classifier trained with hardpatch

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

    hardpatch VERB --resume --out {folder}

In Python, `hardpatch.load_classifier("{folder}")` loads the network.
"""


PROBE_PATH = 0.016 * 31278
"""Peak learning rate times steps of the linear probe of Table S3 on ImageNet; with far less, little is learned."""

LARGE_DEPTH = 24
"""Blocks of ViT-L, and the least for which a run says that the paper's ViT-L trains for 50 epochs."""


@dataclass(frozen=True)
class FinetuneResult:
    """Result of :func:`finetune` and :func:`train_linear_probe`.

    Accuracies are shares in [0, 1], NaN if it was interrupted.
    """

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
    run: str | Path | RunConfig | None = None,
    train: Paths | None = None,
    val: Paths | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> FinetuneResult:
    """Train a pre-trained encoder and a linear layer on labels: ``hardpatch finetune``.

    Training ends early, with a checkpoint, on SIGINT or SIGTERM.

    Args:
        run: the encoder: run folder, weights file, reference checkpoint or timm's weights. Or settings of a
            pre-training run: its encoder is trained from random weights, in the images that the settings name.
        train: labeled images to learn from: one folder for each class, or a table or archive with labels.
        val: labeled images to evaluate on. Their classes are those of ``train`` by name.
        out: folder of the run.
        preset: name in :data:`~hardpatch.finetune.settings.PRESETS`; ``small`` by default.
        image_column: column of the images in tables; None finds it.
        label_column: column of the labels, likewise.
        resume: continue the run in ``out``; no other argument is needed then.
        progress: shows steps and metrics; silent by default.
        arguments: command line of this call, for the folder's README.
        settings: settings that differ from the preset, see :class:`~hardpatch.finetune.settings.FinetuneSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; later if too many images
            cannot be decoded.
        TrainingError: if the loss becomes NaN or infinite.
    """
    scratch = run if isinstance(run, RunConfig) else None
    if scratch is not None:
        settings = {name: value for name, value in settings.items() if name != "weights"}
        settings |= {} if resume else {"weights": "random"}  # a resumed run has them
    inputs = {"run": run if scratch is None else describe(scratch), "train": train, "val": val}
    inputs |= {"image_column": image_column, "label_column": label_column}
    folder_run = open_run("finetune", out, inputs, PRESETS, preset, settings, resume=resume, required=REQUIRED)
    return _train("finetune", folder_run, progress or Silent(), list(arguments), scratch)


def train_linear_probe(
    run: str | Path | None = None,
    train: Paths | None = None,
    val: Paths | None = None,
    out: str | Path | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> FinetuneResult:
    """Train a linear layer on the frozen features of random crops: ``hardpatch linear --protocol paper``.

    The settings are those of Table S3 (:data:`~hardpatch.finetune.settings.PROBES`). Unlike
    :func:`hardpatch.measure.linear.linear_probe` it encodes every crop anew, and has one learning rate that is not
    chosen on ``val``. Arguments and errors are those of :func:`finetune`, except that ``run`` must have weights.
    """
    inputs = {"run": run, "train": train, "val": val, "image_column": image_column, "label_column": label_column}
    folder_run = open_run("linear", out, inputs, PROBES, None, settings, resume=resume, required=REQUIRED)
    return _train("linear", folder_run, progress or Silent(), list(arguments))


def _train(
    verb: str,
    folder_run: FolderRun[FinetuneSettings],
    progress: Progress,
    arguments: list[str],
    scratch: RunConfig | None = None,
) -> FinetuneResult:
    started = time.monotonic()
    folder, settings, inputs = folder_run.folder, folder_run.settings, folder_run.inputs
    columns = Columns(inputs["image_column"], inputs["label_column"])
    train, val = _open("train", inputs["train"], columns), _open("val", inputs["val"], columns)
    check(settings, len(train))
    classes, val_labels = align_labels(train, val)
    fabric = start_fabric(settings.device, settings.precision, "--")
    newest = checkpoint.newest(folder)
    # A resumed run does not read the encoder that it started from, which may be gone or trained further.
    if newest is not None:
        model = load_classifier(newest).model
    else:
        model = initial_classifier(settings, scratch or inputs["run"], train, len(classes))
    train, val = (as_read(source, model.reading) for source in (train, val))
    job = FinetuneJob(settings, folder, train, val, classes, val_labels, model, fabric)
    if newest is not None:
        job.restore(newest)
    folder_run.write(verb, arguments, README.replace("VERB", verb))
    log_to(folder / "log.txt")
    for name, source in (("--train", train), ("--val", val)):
        log.info("%s: %s", name, summarize(source))
    if len(train) < settings.batch_size:
        log.warning("%d images are fewer than a batch of %d; see --batch_size", len(train), settings.batch_size)
    path = settings.peak_lr * job.total
    if settings.frozen and settings.optimizer == "sgd" and path < PROBE_PATH / 10 and newest is None:
        text = "learning rate times steps is %.2g, %.0f in the paper's probe on ImageNet; the same with --base_lr %.3g"
        log.warning(text, path, PROBE_PATH, PROBE_PATH / path * settings.peak_lr * 256 / settings.batch_size)
    large = len(job.model.encoder.blocks) >= LARGE_DEPTH and not settings.frozen
    if large and settings.epochs == PRESETS["paper"].epochs and newest is None:
        log.warning("the paper fine-tunes ViT-L for 50 epochs, this run has 100; see --preset paper_large")
    signal = fit(job, progress)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return FinetuneResult(folder, saved, job.step, job.total, signal=signal)
    return _finish(verb, job, folder_run, saved, time.monotonic() - started)


def _finish(
    verb: str, job: FinetuneJob, folder_run: FolderRun[FinetuneSettings], saved: Path, seconds: float
) -> FinetuneResult:
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
        verb,
        run=inputs["run"],
        data={"train": inputs["train"], "val": inputs["val"]},
        images={"train": job.images, "val": evaluation.images},
        classes=len(classes),
        left_out={
            **counts(job.source.skipped, len(job.bad_files), "train, "),
            **counts(job.val.skipped, len(job.bad_val), "val, "),
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
        path: a run folder of :func:`finetune` or :func:`train_linear_probe` (its newest checkpoint), a checkpoint's
            folder, or its ``model.safetensors``. If the run has a moving average of its weights, the average is loaded.

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
        reading=read_reading(metadata),
        drop_path=metadata["finetune"]["drop_path"],
        frozen=metadata["finetune"].get("frozen", False),
        pool=metadata["finetune"].get("pool", "mean"),
    )
    model.load_state_dict(weights)
    return LoadedClassifier(model.eval(), tuple(metadata["classes"]), size)


def initial_classifier(
    settings: FinetuneSettings, run: str | Path | RunConfig, train: Source, classes: int
) -> Classifier:
    """Build the network that a run starts from.

    Args:
        settings: of the run.
        run: weights of the encoder, or the settings of a pre-training run, whose encoder starts from random weights.
        train: images, for the channel statistics that such settings may ask for.
        classes: number of classes.

    Raises:
        UserError: if the weights cannot be loaded or the image size does not fit.
    """
    if isinstance(run, RunConfig):
        encoder, mean, std, reading = random_encoder(replace(run, seed=settings.seed), train)
    else:
        encoder, mean, std, reading = load_backbone(run, settings.weights, seed=settings.seed)
    unshare_relative_bias(encoder)
    size = None if settings.image_size is None else (settings.image_size, settings.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            return Classifier(
                encoder,
                classes,
                mean=mean,
                std=std,
                reading=adapted(reading, train, "--train"),
                image_size=size,
                drop_path=settings.drop_path,
                frozen=settings.frozen,
                pool=settings.pool,
            )
        except ValueError as error:
            raise UserError(f"--image_size: {error}") from None


def _open(role: Role, path: Paths, columns: Columns) -> OpenedSource:
    try:
        return open_source(path, columns, role)
    except UserError as error:
        raise UserError(f"--{role}: {error}") from None
