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
from hardpatch.data.augment import MultiCropTransform, TrainTransform, channel_statistics
from hardpatch.data.loader import BadFiles, Batch, resolve_workers, train_batches
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.knn import knn_accuracy
from hardpatch.evaluate.labelled import labelled_features
from hardpatch.methods.hpm import HPM, Losses, Problem, mine
from hardpatch.methods.ibot import IBOT, Views
from hardpatch.models.teacher import Teacher
from hardpatch.randomness import patch_noise
from hardpatch.targets import Target
from hardpatch.train import checkpoint
from hardpatch.train.build import image_size, initial_model, masking_of, needs_teacher, target_of
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
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, mean, std, outputs)
    prepare()
    if source.skipped:
        shown = ", ".join(source.skipped[:SKIPPED_SHOWN])
        log.warning("left out, not images: %d, among them %s", len(source.skipped), shown)
    trainer = Trainer(run, folder, source, model, fabric, total, target, outputs)
    if newest is not None:
        trainer.restore(newest)
    return trainer.fit(progress)


class Piece(NamedTuple):
    """A batch, or a part of one, on the device."""

    pixels: Tensor
    """uint8 ``[B, C, H, W]``; two crops of each image, in random order, with host ibot"""
    images: Tensor
    """the same, normalised"""
    noise: Tensor
    """uniform in [0, 1), what the masks are drawn from"""
    local: Tensor | None
    """host ibot's small crops, normalised, view by view"""
    back: Tensor
    """puts the images in the order of the views"""


class Step(NamedTuple):
    """What one optimiser step leaves behind, on the device; of its last piece where a batch is computed in several."""

    problem: Problem
    losses: Losses
    noise: Tensor
    gradient_norm: Tensor | None


class Trainer:
    """The state of a run and what is done with it, one step at a time.

    Args:
        run: its configuration.
        folder: of the run.
        source: the images.
        model: the student.
        fabric: device and precision.
        total: optimiser steps.
        target: what is reconstructed where it is another network's; None is the host's own.
        outputs: numbers that such a target takes for a patch.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        source: Source,
        model: HPM,
        fabric: Fabric,
        total: int,
        target: Target | None = None,
        outputs: int | None = None,
    ) -> None:
        self.run, self.folder, self.source, self.fabric, self.total = run, folder, source, fabric, total
        self.target, self.outputs = target, outputs
        self.step = 0
        self.model = model.to(fabric.device)
        self.teacher = Teacher(self.model) if needs_teacher(run) else None
        self.ibot = isinstance(model.host, IBOT)
        groups = parameter_groups(self.model, run.optim.weight_decay)
        # The fused step unscales float16 gradients by itself, after they should have been clipped.
        fused = fabric.device.type != "mps" and run.train.precision != "fp16"
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas, fused=fused)
        self.student, self.optimizer = fabric.setup(self.model, self.adamw)
        self.grid, self.masking = model.grid, masking_of(run)
        self.epoch_steps = len(source) / run.batch_size
        self.means = RunningMeans(fabric.device)

    def train_step(self, batch: Batch, now: Schedule, *, observe: bool = False) -> Step:
        """One optimiser step: the teacher sets a problem, the student solves it, the teacher follows the student."""
        pieces = self.run.optim.accumulate
        torch.manual_seed(self.run.seed * 1_000_003 + self.step)  # of drop path: the same after a resume
        for piece in map(self._on_device, split_batch(batch, pieces)):
            with self.fabric.autocast():
                problem = mine(
                    self.teacher,
                    piece.images,
                    piece.noise,
                    mask_ratio=now.mask_ratio,
                    alpha=now.alpha,
                    grid=self.grid,
                    masking=self.masking,
                    look=self.ibot or self.run.method.target == "teacher",
                    images_masked=max(1, round(len(piece.images) * self.run.ibot.masked_share)) if self.ibot else None,
                )
                target, views = self._teach(piece, problem, now)
            losses = self.student(piece.images, problem.mask, target, views, observe=observe)
            self.fabric.backward(losses.loss / pieces)
            self.means.add(losses)
        for group in self.adamw.param_groups:
            group["lr"] = now.lr
            group["weight_decay"] = now.weight_decay if group["weight_decay"] else 0.0
        if self.ibot and self.step < self.run.ibot.frozen_last_layer * self.total:
            self.model.get_parameter("host.head.last.weight").grad = None
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.model, now.momentum)
        self.step += 1
        return Step(problem, losses, piece.noise, norm)

    def _on_device(self, batch: Batch) -> Piece:
        """Move a batch, and draw the random numbers of its masks."""
        device = self.fabric.device
        pixels = batch.images.to(device, non_blocking=True)
        samples = batch.indices.to(device, non_blocking=True)
        crops = len(pixels) // len(samples)
        count = self.masking.noise_count(self.grid)
        noise = torch.cat([patch_noise(self.run.seed, self.step, samples + (k << 40), count + 1) for k in range(crops)])
        back = torch.arange(len(pixels), device=device)
        if self.ibot:  # the first so many are masked, so that which crops these are must be left to chance
            order = noise[:, -1].argsort()
            pixels, noise, back = pixels[order], noise[order], order.argsort()
        local = None
        if batch.local is not None:
            local = self.model.normalise(batch.local.to(device, non_blocking=True))
        return Piece(pixels, self.model.normalise(pixels), noise[:, :-1], local, back)

    def _teach(self, piece: Piece, problem: Problem, now: Schedule) -> tuple[Tensor | None, Views | None]:
        """The target of the masked patches where it is not the host's own, and what iBOT's class tokens learn."""
        if self.ibot:
            assert self.teacher is not None
            assert problem.sight is not None
            classes, tokens = self.teacher.network.host.teach(
                problem.sight.latent, problem.mask, now.teacher_temperature, self.run.ibot.centre_momentum
            )
            return tokens, Views(piece.local, classes, piece.back)
        if self.target is None:
            return None, None
        with torch.no_grad():
            return self.target(piece.pixels, problem.sight, problem.mask), None

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
                    now = schedule(run, self.step, self.total)
                    minutes = (time.monotonic() - saved_at) / 60
                    stopping = bool(signals)
                    done = self.step + 1
                    save = stopping or done == self.total or minutes >= train.checkpoint_minutes
                    save = save or done % (train.checkpoint_steps or self.total) == 0
                    told = save or done % train.log_every == 0 or self._knn_is_due(done)
                    step = self.train_step(batch, now, observe=told)
                    progress.advance()
                    if told:
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
                "outputs": self.outputs,
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
        data, size = run.data, image_size(run)
        transform: TrainTransform | MultiCropTransform
        if self.ibot:
            transform = MultiCropTransform(
                size,
                local_size=(run.ibot.local_size, run.ibot.local_size),
                local_crops=run.ibot.local_crops,
                channels=data.channels,
                global_scale=data.crop_scale,
                local_scale=run.ibot.local_scale,
                ratio=data.crop_ratio,
                flip=data.flip,
                colour=run.ibot.colour,
            )
        else:
            transform = TrainTransform(
                size, data.channels, data.crop_scale, data.crop_ratio, data.flip, colour_jitter=data.colour_jitter
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
        signs = vital_signs(step.problem, step.losses, step.noise, now.alpha, now.mask_ratio, self.grid, self.masking)
        if step.gradient_norm is not None:
            signs["gradient_norm"] = step.gradient_norm
        numbers = {name: value.item() for name, value in signs.items()}
        row = {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            **means,
            **now.told(self.run),
            **{name: number for name, number in numbers.items() if math.isfinite(number)},
            "images_per_second": (self.step - logged) * self.run.batch_size / seconds,
        }
        if self._knn_is_due(self.step):
            row["knn_top1"] = self._knn()
        return row

    def _knn_is_due(self, step: int) -> bool:
        every = self.run.knn.every_epochs * self.epoch_steps
        return self.run.knn.train is not None and step // every > (step - 1) // every

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


def split_batch(batch: Batch, pieces: int) -> Iterator[Batch]:
    """The batch in so many equal parts, all crops of an image in the same one."""
    size = len(batch.indices) // pieces
    for k in range(pieces):
        images, local = (
            None if crops is None else crops.unflatten(0, (-1, len(batch.indices)))[:, k * size : (k + 1) * size]
            for crops in (batch.images, batch.local)
        )
        assert images is not None
        yield Batch(
            images.flatten(0, 1),
            batch.indices[k * size : (k + 1) * size],
            batch.labels[k * size : (k + 1) * size],
            [],
            None if local is None else local.flatten(0, 1),
        )


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
