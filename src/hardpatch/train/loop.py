"""The training loop: all that surrounds the steps of a job, the same for every job.

Jobs are pre-training, fine-tuning, segmentation, detection, the tokenizer and the paper's Table D.
"""

import logging
import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

from hardpatch.data.bad_files import BadFiles
from hardpatch.errors import TrainingError
from hardpatch.train.cadence import Cadence
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.progress import Progress, Unbreakable
from hardpatch.train.signals import requests_by_signal
from hardpatch.train.state import NotFiniteError

log = logging.getLogger("hardpatch")


class Job(Protocol):
    """A training: what the loop has to know of it."""

    folder: Path
    """of the run"""
    total: int
    """optimizer steps of the whole run"""
    batch_size: int
    """images of a step"""
    images: int
    """in the training set"""
    cadence: Cadence
    bad_files: BadFiles
    """counts files that cannot be decoded"""
    advice: str
    """what to try when the loss is not finite: goes on after "Try" """

    @property
    def step(self) -> int:
        """Optimizer steps done; the job counts them."""

    def batches(self) -> Generator[Any, None, None]:
        """Batches from number ``step`` on, for ever; each has ``bad``, the files that could not be decoded."""

    def train_step(self, batch: Any, *, observe: bool) -> None:
        """Take one optimizer step, without waiting for the device; ``observe`` announces a call of :meth:`metrics`."""

    def metrics(self) -> dict[str, float]:
        """Means of the losses since the last call, and other finite numbers. Waits for the device."""

    def save(self) -> None:
        """Write a checkpoint; :class:`~hardpatch.train.state.NotFiniteError` where a weight is not finite."""

    def evaluate(self) -> dict[str, float]:
        """Measure the model, for the log."""


def fit(job: Job, progress: Progress) -> int:
    """Train to the end, or until SIGINT or SIGTERM.

    Losses and weights are checked before anything is saved, and everything is saved before a long evaluation.

    Returns:
        The signal that interrupted the training, 0 where nothing did.

    Raises:
        UserError: if too many files cannot be decoded.
        TrainingError: if losses or weights become NaN or infinite; the last checkpoint stays as it was.
    """
    cadence, shown = job.cadence, Unbreakable(progress)
    with ExitStack() as stack:
        requests = stack.enter_context(requests_by_signal())
        metrics = stack.enter_context(closing(MetricsLog(job.folder, job.step)))
        shown.start(job.step, job.total, job.batch_size)
        stack.callback(shown.stop)
        if cadence.evaluates(job.step) and not metrics.evaluated:  # it was killed while it evaluated
            _evaluate(job, metrics, shown)
        batches = stack.enter_context(closing(job.batches()))
        logged, logged_at = job.step, time.monotonic()
        stop = 0
        while job.step < job.total and not stop:
            batch = next(batches)
            job.bad_files.update(batch.bad)
            due = cadence.due(job.step + 1)
            job.train_step(batch, observe=due.log)
            shown.advance()
            save = due.save or bool(requests.stop) or requests.save
            stop = requests.stop if save else 0  # a signal that comes later stops after the next step, which is saved
            if due.log or save:
                row = {"step": job.step, "epoch": job.step * job.batch_size / job.images, **job.metrics()}
                if not all(map(math.isfinite, row.values())):
                    raise _diverged(job, logged)
                row["images_per_second"] = (job.step - logged) * job.batch_size / (time.monotonic() - logged_at)
                metrics.write(row)
                shown.metrics(row)
            if save:
                _save(job, logged)
                requests.save = False
            if due.evaluate:
                _evaluate(job, metrics, shown)
            if due.log or save:
                logged, logged_at = job.step, time.monotonic()
    return stop


def _save(job: Job, logged: int) -> None:
    try:
        job.save()
    except NotFiniteError:
        raise _diverged(job, logged) from None
    job.cadence.saved()


def _evaluate(job: Job, metrics: MetricsLog, shown: Unbreakable) -> None:
    row = {"step": job.step, "epoch": job.step * job.batch_size / job.images, **job.evaluate()}
    metrics.write(row)
    shown.metrics(row)


def _diverged(job: Job, logged: int) -> TrainingError:
    return TrainingError(
        f"the loss or a weight became NaN or infinite between steps {logged + 1} and {job.step}; nothing of that was "
        f"saved. Try {job.advice}, then go on from the last checkpoint with --resume or start anew"
    )
