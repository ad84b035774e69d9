"""Result of a fine-tuning: the evaluation that counts, ``result.json`` and the pictures."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardpatch.curves import training_curves
from hardpatch.data.left_out import counts
from hardpatch.data.sources import Source
from hardpatch.files import atomic_path, optional_file
from hardpatch.finetune.balance import balance_line
from hardpatch.finetune.file import load_classifier
from hardpatch.finetune.measure import ClassifierEvaluation, confusion_figure, report
from hardpatch.finetune.objective import Evaluation
from hardpatch.finetune.probe import choose
from hardpatch.finetune.settings import PRESETS, FinetuneSettings, short_of
from hardpatch.finetune.target_measure import MultilabelEvaluation, RegressionEvaluation
from hardpatch.finetune.trainer import FinetuneJob
from hardpatch.interchange.finetuned import BEST, PROBE
from hardpatch.train.folder_run import FolderRun
from hardpatch.train.metrics import logged_pictures, read_metrics
from hardpatch.train.result import write_result

PROBE_PATH = 0.016 * 31278
"""Peak learning rate times steps of the linear probe of Table S3 on ImageNet; with far less, little is learned."""

LARGE_DEPTH = 24
"""Blocks of ViT-L, and the least for which a run says that the paper's ViT-L trains for 50 epochs."""
log = logging.getLogger("hardpatch")

MAIN_NUMBER = {"classes": "top1", "multilabel": "map", "regression": "r2"}
"""Number of each task by which evaluations are compared."""


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
    summary: str = ""
    """the result in words, for tasks of several labels or numbers an image, whose accuracies are NaN"""
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    """content of ``result.json``"""

    @property
    def finished(self) -> bool:
        """True unless the run was interrupted."""
        return self.step == self.total


def warnings(job: FinetuneJob, images: int) -> Iterator[str]:
    """Yield a line for each setting of a new run that hardly suits its encoder or its ``images``."""
    run = job.run
    if job.images < run.batch_size:
        yield f"{job.images} images are fewer than a batch of {run.batch_size}; see --batch_size"
    short = short_of(run, job.total, images, len(job.classes)) if run.task == "classes" else None
    if short is not None:
        yield short
    if job.counts is not None:
        yield f"balanced: {balance_line(job.counts, job.classes)}"
    if run.task != "classes":
        yield (
            f"--task {run.task}: mixup, CutMix, label smoothing and the probe of the preset auto are off; they are "
            "made for one class an image"
        )
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


def finish(
    verb: str,
    job: FinetuneJob,
    folder_run: FolderRun[FinetuneSettings],
    saved: Path,
    held_out: Source | None,
    started: float,
) -> FinetuneResult:
    """Write result.json and the pictures.

    Args:
        verb: name on the command line.
        job: the training, done.
        folder_run: its inputs.
        saved: its last checkpoint.
        held_out: images that choose between the probe and the network; None for a run without a probe.
        started: time of the start, of ``time.monotonic``.
    """
    folder, inputs = job.folder, folder_run.inputs
    stopped = _best_weights(job)
    evaluation, choice = job.evaluation, None
    if held_out is not None:
        evaluation, choice = choose(job, held_out)
    assert evaluation is not None
    held = {} if held_out is None else {"held_out": len(held_out)}
    rows = read_metrics(folder / "metrics.jsonl") if job.step else []
    numbers, best = _numbers(job, evaluation, rows)
    result = write_result(
        folder,
        verb,
        run=inputs["run"],
        data={"train": inputs["train"], "val": inputs["val"] or "held out of train"},
        images={"train": job.images, **held, "val": evaluation.images},
        classes=len(job.classes) if job.run.task != "regression" else None,
        left_out={
            **counts(job.source.skipped, len(job.bad_files), "train, "),
            **counts(job.val.skipped, len(job.bad_val), "val, "),
        },
        seconds=time.monotonic() - started,
        steps=job.step,
        task=job.run.task,
        **stopped,
        **(choice or {}),
        **numbers,
    )
    _draw(job, evaluation, rows)
    saved = folder / BEST if stopped else saved
    known = FinetuneResult(
        folder,
        saved if choice is None or choice["kept"] == "fine-tuned" else folder / PROBE,
        job.step,
        job.step,
        best_epoch=best[1],
        result=result,
    )
    if isinstance(evaluation, ClassifierEvaluation):
        return replace(known, top1=evaluation.top1, top5=evaluation.top5, best_top1=best[0])
    assert isinstance(evaluation, MultilabelEvaluation | RegressionEvaluation)
    return replace(known, summary=evaluation.line())


def _draw(job: FinetuneJob, evaluation: Evaluation, rows: list[dict[str, Any]]) -> None:
    """Draw the curves, and the confusion matrix where there is one."""
    pictures = job.folder / "pictures"
    with optional_file(pictures), logged_pictures(job.folder, job.step, job.run.logger):
        if rows:
            training_curves(rows, pictures / "curves.png")
        if isinstance(evaluation, ClassifierEvaluation):
            with atomic_path(pictures / "confusion.png") as partial:
                confusion_figure(evaluation.confusion, job.classes).savefig(partial)


def _best_weights(job: FinetuneJob) -> dict[str, Any]:
    """Let the best weights of a run with patience be those that count; returns values for ``result.json``."""
    if job.early is None or job.early.best is None:
        return {}
    job.best_model = load_classifier(job.early.file).model.to(job.fabric.device)
    job.evaluation = job.objective.evaluate(job.predict(job.val), len(job.classes))
    step = job.early.best[0]
    ended = "early" if job.step < job.planned else "as planned"
    log.info(
        "--patience %d: ended %s after step %d of %d; the weights of step %d, the best on the images of the "
        "evaluations, count; the result is a little too high, since they were chosen on the same images",
        *(job.early.patience, ended, job.step, job.planned, step),
    )
    return {"best_weights": {"file": BEST, "step": step, "planned_steps": job.planned}}


def _numbers(
    job: FinetuneJob, evaluation: Evaluation, rows: list[dict[str, Any]]
) -> tuple[dict[str, Any], tuple[float, float]]:
    """Return the numbers of the result, and the main number of the best evaluation with its epoch."""
    name = MAIN_NUMBER[job.run.task]
    best = max((row for row in rows if name in row), key=lambda row: row[name], default=None)
    value, epoch = (evaluation.score, 0.0) if best is None else (best[name], best["epoch"])
    if isinstance(evaluation, ClassifierEvaluation):
        return report(evaluation, job.classes, value, epoch), (value, epoch)
    assert isinstance(evaluation, MultilabelEvaluation | RegressionEvaluation)
    described = {key: found for key, found in job.objective.described().items() if key != "task"}
    return {**evaluation.report(), **described, f"best_{name}": value, "best_epoch": epoch}, (value, epoch)
