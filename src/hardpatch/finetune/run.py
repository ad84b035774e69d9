"""Fine-tuning and linear probing: a linear layer trained on labels, with the encoder (Table S2) or without (S3)."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardpatch.curves import training_curves
from hardpatch.data.bands import as_read
from hardpatch.data.columns import Columns
from hardpatch.data.left_out import counts
from hardpatch.data.sources import OpenedSource, Paths, Source, open_source
from hardpatch.data.splits import Role
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, optional_file
from hardpatch.finetune.file import PROBE, initial_classifier, load_classifier
from hardpatch.finetune.measure import confusion_figure, report
from hardpatch.finetune.probe import choose, hold_out_of, start_from_probe
from hardpatch.finetune.scratch import describe
from hardpatch.finetune.settings import AUTO, PRESETS, PROBES, FinetuneSettings, by_size, check, short_of
from hardpatch.finetune.trainer import FinetuneJob
from hardpatch.measure.features import align_labels
from hardpatch.pretrain.sections import RunConfig
from hardpatch.processes import is_first, on_first
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric_of
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.freeze import trained_line
from hardpatch.train.launch import launch_of
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.result import write_result
from hardpatch.train.run_folder import claimed, read_values, resume_point
from hardpatch.train.settings import check_loop

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
        preset: name in :data:`~hardpatch.finetune.settings.PRESETS`; ``auto`` by default, which fits settings to the
            number of images.
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
    presets = PRESETS
    if preset == AUTO or (preset is None and not resume):
        presets = {**PRESETS, AUTO: _auto(inputs, out if resume else None)}
    folder_run = open_run(
        "finetune", out, inputs, presets, preset, settings, resume=resume, required=REQUIRED, earlier={"probe": False}
    )
    return _launch("finetune", folder_run, progress, list(arguments), scratch)


def _auto(inputs: Mapping[str, Any], folder: str | Path | None) -> FinetuneSettings:
    """Return the preset ``auto`` for the training set of a new run, or of the run in ``folder``."""
    if folder is not None:
        inputs = read_values(Path(folder)) | {name: value for name, value in inputs.items() if value is not None}
    if inputs.get("train") is None:
        return PRESETS[AUTO]
    return by_size(len(_open("train", inputs["train"], Columns(inputs["image_column"], inputs["label_column"]))))


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
    return _launch("linear", folder_run, progress, list(arguments))


def _launch(
    verb: str,
    folder_run: FolderRun[FinetuneSettings],
    progress: Progress | None,
    arguments: list[str],
    scratch: RunConfig | None = None,
) -> FinetuneResult:
    check_loop(folder_run.settings)
    with claimed(folder_run.folder, resume=folder_run.resume):
        return launch_of(
            folder_run.settings, _train, verb, folder_run, arguments, scratch, progress=progress or Silent()
        )


def _train(
    verb: str,
    folder_run: FolderRun[FinetuneSettings],
    arguments: list[str],
    scratch: RunConfig | None,
    *,
    progress: Progress,
) -> FinetuneResult:
    started = time.monotonic()
    folder, settings, inputs = folder_run.folder, folder_run.settings, folder_run.inputs
    columns = Columns(inputs["image_column"], inputs["label_column"])
    train, val = _open("train", inputs["train"], columns), _open("val", inputs["val"], columns)
    check(settings, len(train))
    classes, val_labels = align_labels(train, val)
    fabric = start_fabric_of(settings)
    newest = resume_point(folder)
    # A resumed run does not read the encoder that it started from, which may be gone or trained further.
    if newest is not None:
        model = load_classifier(newest).model
    else:
        model = initial_classifier(settings, scratch or inputs["run"], train, len(classes))
    train, val = (as_read(source, model.reading) for source in (train, val))
    learned_from, held_out = hold_out_of(train, settings)
    job = FinetuneJob(settings, folder, learned_from, val, classes, val_labels, model, fabric)
    if newest is not None:
        job.restore(newest)
    if is_first():
        folder_run.write(verb, arguments, README.replace("VERB", verb))
        log_to(folder / "log.txt")
    for name, source in (("--train", train), ("--val", val)):
        log.info("%s: %s", name, summarize(source))
    for line in trained_line(job.model, job.frozen):
        log.info(line)
    if newest is None:
        for line in warnings(job, len(train)):
            log.warning(line)
    if held_out is not None and newest is None:
        start_from_probe(job, train, held_out, quiet=isinstance(progress, Silent))
    if settings.probe_only:
        return on_first(lambda: _finish(verb, job, folder_run, folder / PROBE, held_out, started))
    signal = fit(job, progress)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return FinetuneResult(folder, saved, job.step, job.total, signal=signal)
    if job.evaluation is None:  # a finished run is evaluated again when it is resumed
        job.evaluate()
    job.whole_model.gather()
    return on_first(lambda: _finish(verb, job, folder_run, saved, held_out, started))


def warnings(job: FinetuneJob, images: int) -> Iterator[str]:
    """Yield a line for each setting of a new run that hardly suits its encoder or its ``images``."""
    run = job.run
    if job.images < run.batch_size:
        yield f"{job.images} images are fewer than a batch of {run.batch_size}; see --batch_size"
    short = short_of(run, job.total, images, len(job.classes))
    if short is not None:
        yield short
    path = run.peak_lr * job.total
    if run.frozen and run.optimizer == "sgd" and path < PROBE_PATH / 10:
        base_lr = PROBE_PATH / path * run.peak_lr * 256 / run.batch_size
        yield (
            f"learning rate times steps is {path:.2g}, {PROBE_PATH:.0f} in the paper's probe on ImageNet; "
            f"the same with --base_lr {base_lr:.3g}"
        )
    large = len(job.model.encoder.blocks) >= LARGE_DEPTH and not run.frozen
    if large and run.epochs == PRESETS["paper"].epochs:
        yield "the paper fine-tunes ViT-L for 50 epochs, this run has 100; see --preset paper_large"


def _finish(
    verb: str,
    job: FinetuneJob,
    folder_run: FolderRun[FinetuneSettings],
    saved: Path,
    held_out: Source | None,
    started: float,
) -> FinetuneResult:
    """Write result.json and the pictures."""
    folder, classes, inputs = job.folder, job.classes, folder_run.inputs
    evaluation, choice = job.evaluation, None
    if held_out is not None:
        evaluation, choice = choose(job, held_out)
    assert evaluation is not None
    rows = read_metrics(folder / "metrics.jsonl") if job.step else []
    best = max((row for row in rows if "top1" in row), key=lambda row: row["top1"], default=None)
    best_top1, best_epoch = (evaluation.top1, 0.0) if best is None else (best["top1"], best["epoch"])
    result = write_result(
        folder,
        verb,
        run=inputs["run"],
        data={"train": inputs["train"], "val": inputs["val"]},
        images={
            "train": job.images,
            **({} if held_out is None else {"held_out": len(held_out)}),
            "val": evaluation.images,
        },
        classes=len(classes),
        left_out={
            **counts(job.source.skipped, len(job.bad_files), "train, "),
            **counts(job.val.skipped, len(job.bad_val), "val, "),
        },
        seconds=time.monotonic() - started,
        steps=job.step,
        **(choice or {}),
        **report(evaluation, classes, best_top1, best_epoch),
    )
    with optional_file(folder / "pictures"):
        if rows:
            training_curves(rows, folder / "pictures" / "curves.png")
        with atomic_path(folder / "pictures" / "confusion.png") as partial:
            confusion_figure(evaluation.confusion, classes).savefig(partial)
    return FinetuneResult(
        folder,
        saved if choice is None or choice["kept"] == "fine-tuned" else folder / PROBE,
        job.step,
        job.step,
        evaluation.top1,
        evaluation.top5,
        best_top1,
        best_epoch,
        result=result,
    )


def _open(role: Role, path: Paths, columns: Columns) -> OpenedSource:
    try:
        return open_source(path, columns, role)
    except UserError as error:
        raise UserError(f"--{role}: {error}") from None
