"""Pre-training: one run, from its configuration to a folder with weights, metrics and pictures."""

import logging
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch import __version__
from hardpatch.config import IMAGENET_MEAN, IMAGENET_STD, RunConfig, to_dict
from hardpatch.curriculum import mined_count
from hardpatch.data.augment import TrainTransform, channel_statistics
from hardpatch.data.loader import BadFiles, Batch, resolve_workers, train_batches
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.knn import knn_accuracy
from hardpatch.evaluate.labelled import labelled_features
from hardpatch.methods.hpm import HPM, Losses, Problem, mine
from hardpatch.models.teacher import Teacher
from hardpatch.randomness import patch_noise
from hardpatch.train import checkpoint
from hardpatch.train.build import image_size, initial_model
from hardpatch.train.monitor import MetricsLog, RunningMeans, diverged, vital_signs
from hardpatch.train.optim import Schedule, parameter_groups, schedule

log = logging.getLogger("hardpatch")

SKIPPED_SHOWN = 20
"""Names of files that are no images that are put into the log; a folder may hold a million of them."""

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Progress(Protocol):
    """What shows a run to a person; the command line draws a bar."""

    def start(self, step: int, total: int, batch_size: int) -> None:
        """The run begins, or goes on, after ``step`` of ``total`` steps of ``batch_size`` images."""

    def advance(self) -> None:
        """A step is done."""

    def metrics(self, row: dict[str, Any]) -> None:
        """A line of metrics was written."""

    def stop(self) -> None:
        """The run is over, however it ended."""


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`pretrain` ended."""

    checkpoint: Path
    """the newest checkpoint"""
    step: int
    """optimiser steps done"""
    total: int
    """optimiser steps of the whole run"""
    signal: int = 0
    """what interrupted it, 0 if nothing did"""

    @property
    def finished(self) -> bool:
        """False where the run was interrupted."""
        return self.step == self.total


def pretrain(run: RunConfig, folder: Path, progress: Progress, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """Train until the end, or until SIGINT or SIGTERM, from the newest checkpoint in ``folder`` if there is one.

    Args:
        run: the configuration.
        folder: of the run.
        progress: is told of steps and metrics.
        prepare: called once everything that can be wrong with the configuration has been checked, before the first file
            is written.

    Raises:
        UserError: for a mistake in the configuration or the data.
        TrainingError: if the loss becomes NaN or infinite.
    """
    try:
        source = open_source(run.data.path)
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    total = total_steps(run, len(source))
    newest = checkpoint.newest(folder)
    mean, std = _statistics(run, source, newest)
    fabric = _fabric(run)
    model = initial_model(run, mean, std)
    prepare()
    if source.skipped:
        shown = ", ".join(source.skipped[:SKIPPED_SHOWN])
        log.warning("left out, not images: %d, among them %s", len(source.skipped), shown)
    trainer = Trainer(run, folder, source, model, fabric, total)
    if newest is not None:
        trainer.restore(newest)
    return trainer.fit(progress)


class Step(NamedTuple):
    """What one optimiser step leaves behind, on the device; of its last piece where a batch is computed in several."""

    problem: Problem
    losses: Losses
    noise: Tensor
    gradient_norm: Tensor | None


class Trainer:
    """The state of a run and what is done with it, one step at a time."""

    def __init__(self, run: RunConfig, folder: Path, source: Source, model: HPM, fabric: Fabric, total: int) -> None:
        self.run, self.folder, self.source, self.fabric, self.total = run, folder, source, fabric, total
        self.step = 0
        self.model = model.to(fabric.device)
        self.teacher = Teacher(self.model) if model.has_predictor else None
        groups = parameter_groups(self.model, run.optim.weight_decay)
        # The fused step unscales float16 gradients by itself, after they should have been clipped.
        fused = fabric.device.type != "mps" and run.train.precision != "fp16"
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas, fused=fused)
        self.student, self.optimizer = fabric.setup(self.model, self.adamw)
        self.patches = model.grid[0] * model.grid[1]
        self.epoch_steps = len(source) / run.batch_size
        self.means = RunningMeans(fabric.device)

    def train_step(self, batch: Batch, now: Schedule) -> Step:
        """One optimiser step: the teacher sets a problem, the student solves it, the teacher follows the student."""
        method, pieces = self.run.method, self.run.optim.accumulate
        for pixels, indices in zip(batch.images.chunk(pieces), batch.indices.chunk(pieces), strict=True):
            images = self.model.normalise(pixels.to(self.fabric.device, non_blocking=True))
            samples = indices.to(self.fabric.device, non_blocking=True)
            noise = patch_noise(self.run.seed, self.step, samples, self.patches)
            with self.fabric.autocast():
                problem = mine(
                    self.teacher, images, noise, mask_ratio=method.mask_ratio, alpha=now.alpha, mining=method.mining
                )
            losses = self.student(images, problem.mask)
            self.fabric.backward(losses.loss / pieces)
            self.means.add(losses)
        for group in self.adamw.param_groups:
            group["lr"] = now.lr
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.model, now.momentum)
        self.step += 1
        return Step(problem, losses, noise, norm)

    def fit(self, progress: Progress) -> Outcome:
        """Train to the end or until interrupted; a checkpoint is written either way, and from time to time."""
        run, train = self.run, self.run.train
        bad = BadFiles(len(self.source), run.data.max_bad_fraction)
        metrics = MetricsLog(self.folder, self.step)
        batches = self._batches()
        saved_at = logged_at = time.monotonic()
        logged, stopping = self.step, False
        progress.start(self.step, self.total, run.batch_size)
        try:
            with _interruptions() as signals:
                while self.step < self.total and not stopping:
                    batch = next(batches)
                    bad.update(batch.bad)
                    now = schedule(run, self.step / self.total)
                    step = self.train_step(batch, now)
                    progress.advance()
                    minutes = (time.monotonic() - saved_at) / 60
                    stopping = bool(signals)
                    save = stopping or self.step == self.total or minutes >= train.checkpoint_minutes
                    save = save or self.step % (train.checkpoint_steps or self.total) == 0
                    if save or self.step % train.log_every == 0 or self._knn_is_due():
                        row = self._metrics(step, now, logged, time.monotonic() - logged_at)
                        metrics.write(row)
                        progress.metrics(row)
                        logged, logged_at = self.step, time.monotonic()
                    if save:
                        self.save()
                        saved_at = time.monotonic()
        finally:
            batches.close()
            metrics.close()
            progress.stop()
        saved = checkpoint.newest(self.folder)
        assert saved is not None
        return Outcome(saved, self.step, self.total, signals[0] if signals else 0)

    def save(self) -> None:
        """Write a checkpoint of this step.

        Raises:
            TrainingError: if a weight is not finite: the last loss was, but its gradient was not.
        """
        if not torch.stack(torch._foreach_norm(list(self.model.parameters()))).isfinite().all():
            raise diverged(self.step, self.step)
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            student=self.model,
            teacher=self.teacher and self.teacher.network,
            optimizer=self.adamw,
            metadata={
                "hardpatch": __version__,
                "config": to_dict(self.run),
                "mean": self.model.mean.tolist(),
                "std": self.model.std.tolist(),
                "step": self.step,
                "steps": self.total,
                "images": len(self.source),
            },
            scaler=self.fabric.strategy.precision.state_dict(),
            keep=self.run.train.keep_checkpoints,
        )

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint of this run, to the bit.

        Raises:
            UserError: if the data set has another number of images now.
        """
        then = (checkpoint.read_metadata(folder / checkpoint.WEIGHTS) or {}).get("images")
        if then != len(self.source):
            raise UserError(
                f"--resume: the run began with {then} images and --data now has {len(self.source)}; "
                "put the set back as it was, or start anew with another --out"
            )
        self.step, scaler = checkpoint.restore(
            folder, student=self.model, teacher=self.teacher and self.teacher.network, optimizer=self.adamw
        )
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)

    def _batches(self) -> Generator[Batch, None, None]:
        run = self.run
        transform = TrainTransform(
            image_size(run), run.data.channels, scale=run.data.crop_scale, ratio=run.data.crop_ratio, flip=run.data.flip
        )
        return train_batches(
            self.source,
            transform,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.step,
            workers=resolve_workers(run.data.workers),
            pin_memory=self.fabric.device.type == "cuda",
        )

    def _clip(self) -> Tensor | None:
        if self.run.optim.clip is None:
            return None
        return self.fabric.clip_gradients(
            self.student, self.optimizer, max_norm=self.run.optim.clip, error_if_nonfinite=False
        )

    def _metrics(self, step: Step, now: Schedule, logged: int, seconds: float) -> dict[str, float]:
        """A line of metrics: means over the steps since ``logged``, the rest as of ``step``. Waits for the device."""
        means = self.means.read(logged + 1, self.step)
        mined = mined_count(step.problem.mask.masked.shape[1], now.alpha)
        signs = vital_signs(step.problem, step.losses, step.noise, mined, self.run.method.mining)
        if step.gradient_norm is not None:
            signs["gradient_norm"] = step.gradient_norm
        numbers = {name: value.item() for name, value in signs.items()}
        row = {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            **means,
            **now._asdict(),
            **{name: number for name, number in numbers.items() if math.isfinite(number)},
            "images_per_second": (self.step - logged) * self.run.batch_size / seconds,
        }
        if self._knn_is_due():
            row["knn_top1"] = self._knn()
        return row

    def _knn_is_due(self) -> bool:
        every = self.run.knn.every_epochs * self.epoch_steps
        return self.run.knn.train is not None and self.step // every > (self.step - 1) // every

    def _knn(self) -> float:
        knn, data = self.run.knn, self.run.data
        assert knn.train is not None
        assert knn.val is not None
        found = labelled_features(
            self.model.eval(),
            knn.train,
            knn.val,
            device=self.fabric.device,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
        )
        self.model.train()
        return knn_accuracy(found.train, found.val, classes=len(found.classes), device=self.fabric.device).top1


def total_steps(run: RunConfig, images: int) -> int:
    """Optimiser steps of a run over a set of so many ``images``; at least one."""
    if run.steps is not None:
        return run.steps
    return max(1, round((run.epochs or 0.0) * images / run.batch_size))


def _fabric(run: RunConfig) -> Fabric:
    device, precision = run.train.device, run.train.precision
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"train.device: {device} is not available on this machine; use auto or cpu")
    if precision == "auto":
        cuda = available["cuda"] and device in ("auto", "cuda")
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not (available["cuda"] and device in ("auto", "cuda")):
        raise UserError("train.precision: fp16 needs a CUDA device; use bf16 or fp32")
    return Fabric(accelerator=device, devices=1, precision=PRECISIONS[precision])


def _statistics(run: RunConfig, source: Source, newest: Path | None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel; a run that goes on keeps its own."""
    if newest is not None:
        metadata = checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
        return metadata["mean"], metadata["std"]
    computed: tuple[Sequence[float], Sequence[float]] = ((), ())
    if "computed" in (run.data.mean, run.data.std):
        log.info("computing mean and standard deviation of the images")
        computed = channel_statistics(source, run.data.channels, run.seed)
    given = (run.data.mean, run.data.std)
    named = ({"imagenet": IMAGENET_MEAN, "computed": computed[0]}, {"imagenet": IMAGENET_STD, "computed": computed[1]})
    mean, std = (
        list(name[value] if isinstance(value, str) else value) for value, name in zip(given, named, strict=True)
    )
    return mean, std


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, so that a step can end; a second one kills as ever."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
