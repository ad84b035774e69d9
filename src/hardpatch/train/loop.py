"""Training loop that all jobs share: logging, checkpoints, evaluation, signals and divergence.

The jobs are pre-training, fine-tuning (also of a linear layer alone, and of the paper's Table D), segmentation,
detection and the tokenizer.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.loader import WorkerDiedError
from hardpatch.processes import Agreement, gather_values, is_first, process_rank
from hardpatch.train import checkpoint
from hardpatch.train.cadence import Cadence
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.progress import STOPPING, Progress, Unbreakable
from hardpatch.train.recovery import Diverged, go_back, report_bad_steps
from hardpatch.train.signals import Requests, requests_by_signal
from hardpatch.train.state import NotFiniteError, TrainingState, UnsavedError
from hardpatch.transcript import note

KEPT = 2
"""Checkpoints for which a new run should find room on the disk."""

log = logging.getLogger("hardpatch")


class Job(Protocol):
    """Interface between a training and the loop."""

    folder: Path
    """of the run"""
    batch_size: int
    """images in each step"""
    images: int
    """images in the training set"""
    cadence: Cadence
    bad_files: BadFiles
    """counts files that cannot be decoded"""

    @property
    def state(self) -> TrainingState:
        """Tensors that a checkpoint contains."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Plain values for a checkpoint: all that is needed to rebuild the model."""

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run; a job may lower it to end early."""

    @property
    def step(self) -> int:
        """Optimizer steps done. The job counts them."""

    def batches(self) -> Generator[Any, None, None]:
        """Yield batches without end, beginning with number ``step``.

        The attribute ``bad`` of a batch lists its files that could not be decoded.
        """

    def train_step(self, batch: Any, *, observe: bool) -> None:
        """Take one optimizer step without waiting for the device.

        Args:
            batch: from :meth:`batches`.
            observe: :meth:`metrics` is called after this step.
        """

    def metrics(self) -> dict[str, float]:
        """Return the means of the losses since the last call, and other finite numbers. Waits for the device.

        Steps that were skipped are not in the means; without any other step there are none.
        """

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            NotFiniteError: if a weight is NaN or infinite; nothing is written.
        """

    def restore(self, saved: Path) -> None:
        """Go back to a checkpoint of this run, to the bit."""

    def evaluate(self) -> dict[str, float]:
        """Measure the model and return metrics for the log."""


def fit(job: Job, progress: Progress, evaluated: Callable[[], object] | None = None) -> int:
    """Train to the end, or until a signal of :mod:`hardpatch.train.signals`.

    Losses and weights are checked before each checkpoint, and a checkpoint is written before each evaluation. A step
    whose loss or gradient is NaN or infinite is skipped, up to a limit.

    Args:
        job: the training; it continues from ``job.step``.
        progress: display of the run.
        evaluated: called after each evaluation, when its metrics and pictures are written.

    Returns:
        The signal that interrupted the training, 0 if none did.

    Raises:
        UserError: if too many files cannot be decoded.
        TrainingError: if the training has diverged for good (:mod:`hardpatch.train.recovery`), the last checkpoint
            cannot be written, or a process that decodes images dies twice at one step; the last checkpoint is left
            unchanged.
    """
    display, agreement = Unbreakable(progress), Agreement()
    with ExitStack() as stack:
        requests = stack.enter_context(requests_by_signal(display.stopping))
        job.bad_files.keep_in(job.folder / "undecodable.txt")
        stack.callback(agreement.finish)
        stack.callback(display.stop)
        while True:
            try:
                return _train(job, display, requests, agreement, evaluated or (lambda: None))
            except Diverged as divergence:
                display.stop()
                go_back(job, divergence)


def _train(
    job: Job, display: Unbreakable, requests: Requests, agreement: Agreement, evaluated: Callable[[], object]
) -> int:
    """Train to the end or until a signal, which is returned.

    Raises:
        Diverged: if losses or weights become NaN or infinite, in more steps than are skipped.
    """
    cadence, skipping, several = job.cadence, job.state.bad_steps, process_rank().world_size > 1
    with ExitStack() as stack:
        metrics = stack.enter_context(closing(MetricsLog(job.folder, job.step, skipping.settings.logger)))
        display.start(job.step, job.total, job.batch_size, job.folder)
        stack.enter_context(_saving(job))
        if cadence.evaluates(job.step) and not metrics.evaluated:  # the run was killed during this evaluation
            _evaluate(job, metrics, display)
        batches = stack.enter_context(closing(_batches(job)))
        logged, logged_at = job.step, time.monotonic()
        stop, bad = 0, list[str]()
        while job.step < job.total and not stop:
            batch = next(batches)
            bad += batch.bad
            wanted = agreement.exchange(requests.stop, int(cadence.overdue()), int(skipping.poll()))
            due = cadence.due(job.step + 1, save=any(wanted[:2]))
            job.train_step(batch, observe=due.log)
            skipping.watch(job.step, batch)
            display.advance()
            # what came during the step; several processes learn of it at the next one
            stop = wanted[0] if several else requests.stop
            if stop:
                note(STOPPING)
            save = due.save or bool(stop)
            report = due.log or save or bool(wanted[2] if several else skipping.poll())
            if report or not several:
                job.bad_files.update(name for names in gather_values(bad) for name in names)
                bad = []
            if report:
                _log(job, logged, logged_at, metrics, display)
                report_bad_steps(job)
            if save and not skipping.postpones(job.step, last=bool(stop) or job.step == job.total):
                _save(job, logged, last=bool(stop) or job.step == job.total)
            if due.evaluate:
                _evaluate(job, metrics, display)
                evaluated()
            if report:
                logged, logged_at = job.step, time.monotonic()
    return stop


def _log(job: Job, logged: int, logged_at: float, metrics: MetricsLog, display: Unbreakable) -> None:
    """Write and show the metrics since step ``logged``, which was done at ``logged_at``.

    Raises:
        Diverged: if one of them is NaN or infinite.
    """
    row = {"step": job.step, "epoch": job.step * job.batch_size / job.images, **job.metrics()}
    if not all(map(math.isfinite, row.values())):
        raise _diverged(job, logged)
    job.state.bad_steps.poll(wait=True)
    skipped = job.state.bad_steps.total
    if skipped:
        row["skipped_steps"] = skipped
    row["images_per_second"] = (job.step - logged) * job.batch_size / (time.monotonic() - logged_at)
    metrics.write(row)
    display.metrics(row)


def _batches(job: Job) -> Generator[Any, None, None]:
    """Yield the batches of a job. If a loader process dies, others start at the same step; the second time it ends."""
    failed_at = None
    while True:
        try:
            with closing(job.batches()) as batches:
                yield from batches
                return
        except WorkerDiedError as error:
            if failed_at != job.step:
                failed_at = job.step
                log.warning("%s. The training goes on with new processes", error)
                continue
            if job.step and process_rank().world_size == 1:  # others are not at a step that can be saved
                with suppress(NotFiniteError):
                    job.save()
            raise WorkerDiedError(f"{error}. To go on after step {job.step}, add --resume") from None


@contextmanager
def _saving(job: Job) -> Iterator[None]:
    """Write the checkpoints of the block in a thread, if the run does that, and wait for the last one at its end."""
    if job.step == 0 and is_first():
        job.state.check_space(job.folder, KEPT)
    try:
        with job.state.writer.background() if job.state.background else nullcontext():
            yield
    finally:
        _report_unsaved(job)


def _save(job: Job, logged: int, *, last: bool) -> None:
    """Save. The ``last`` checkpoint has to be written; of another one, a failure is reported later."""
    try:
        job.state.writer.wait()
        _report_unsaved(job)
        job.save()
    except NotFiniteError:
        raise _diverged(job, logged) from None
    if last and (error := job.state.writer.failure_anywhere()) is not None:
        earlier = checkpoint.newest(job.folder)
        way_out = "run the command again" if earlier is None else f"add --resume to go on from {earlier.name}"
        raise UnsavedError(
            f"the checkpoint of step {job.step} cannot be written to {job.folder}: {error.strerror}; make room, then "
            f"{way_out}"
        )
    job.cadence.saved()


def _report_unsaved(job: Job) -> None:
    """Say it if the last checkpoint could not be written."""
    if (error := job.state.writer.failure()) is not None and is_first():
        log.warning(
            "the checkpoint of step %d cannot be written to %s: %s; the training goes on and the next one is tried",
            *(job.state.writer.step, job.folder, error.strerror),
        )


def _evaluate(job: Job, metrics: MetricsLog, display: Unbreakable) -> None:
    row = {"step": job.step, "epoch": job.step * job.batch_size / job.images, **job.evaluate()}
    metrics.write(row)
    metrics.write_pictures(job.step)
    display.metrics(row)


def _diverged(job: Job, logged: int) -> Diverged:
    steps = f"in step {job.step}" if job.step == logged + 1 else f"between steps {logged + 1} and {job.step}"
    return Diverged(f"the loss or a weight became NaN or infinite {steps}; nothing of that was saved")
