"""Pre-training: one run, from its configuration to a folder with weights, metrics and pictures."""

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hardpatch import __version__
from hardpatch.data.augment import MultiCropTransform, TrainTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch, on_device
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.loader import train_batches
from hardpatch.data.memory import InMemorySource
from hardpatch.data.sources import Source, open_source
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD, channel_statistics
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.measure.knn import knn_accuracy
from hardpatch.measure.labels import labeled_features
from hardpatch.pretrain.build import image_size, initial_model, target_of
from hardpatch.pretrain.config import to_dict
from hardpatch.pretrain.micro_batch import fewest_pieces
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.step import Learner, Step
from hardpatch.pretrain.vital_signs import diverged, vital_signs
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.progress import Progress
from hardpatch.train.signals import interruptions

log = logging.getLogger("hardpatch")

SKIPPED_SHOWN = 20
"""Names of files that are no images that are put into the log; a folder may hold a million of them."""


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`pretrain` ended."""

    checkpoint: Path
    """the newest checkpoint"""
    step: int
    """optimizer steps done"""
    total: int
    """optimizer steps of the whole run"""
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
    if run.data.in_memory == "host":
        source = InMemorySource(source, run.data.channels)
    mean, std = _statistics(run, source, newest)
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, mean, std, outputs)
    if run.train.compile != "no":
        torch.compiler.reset()  # what earlier runs of this process have compiled is of no use any more
    learner = Learner(run, model, fabric, total, target, len(source))
    held = None
    if run.data.in_memory == "device":
        held = DeviceDataset(source, _transform(run), fabric.device, run.data.device_side)
    if run.optim.accumulation_steps == "auto" and fabric.device.type == "cuda":
        learner.pieces = fewest_pieces(learner)
        torch.cuda.reset_peak_memory_stats(fabric.device)
    prepare()
    if run.optim.accumulation_steps == "auto":
        size = run.batch_size // learner.pieces
        log.info("optim.accumulation_steps auto: %d, pieces of %d images on %s", learner.pieces, size, fabric.device)
    if source.skipped:
        shown = ", ".join(source.skipped[:SKIPPED_SHOWN])
        log.warning("left out, not images: %d, among them %s", len(source.skipped), shown)
    trainer = Trainer(run, folder, source, learner, outputs, held)
    if newest is not None:
        trainer.restore(newest)
    return trainer.fit(progress)


class Trainer:
    """A run: its steps, and everything around them.

    Args:
        run: its configuration.
        folder: of the run.
        source: the images.
        learner: student, teacher and optimizer.
        outputs: numbers that another network's target takes for a patch; goes into the checkpoint.
        held: the same images on the device, where batches are then made.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        source: Source,
        learner: Learner,
        outputs: int | None = None,
        held: DeviceDataset | None = None,
    ) -> None:
        self.run, self.folder, self.source, self.learner, self.outputs = run, folder, source, learner, outputs
        self.held = held
        self.epoch_steps = len(source) / run.batch_size

    def fit(self, progress: Progress) -> Outcome:
        """Train to the end or until interrupted; a checkpoint is written either way, and from time to time."""
        run, train, learner = self.run, self.run.train, self.learner
        bad = BadFiles(len(self.source), run.data.max_bad_fraction)
        metrics = MetricsLog(self.folder, learner.step)
        batches = self._batches()
        saved_at = logged_at = time.monotonic()
        logged, stopping = learner.step, False
        progress.start(learner.step, learner.total, run.batch_size)
        try:
            with interruptions() as signals:
                while learner.step < learner.total and not stopping:
                    batch = next(batches)
                    bad.update(batch.bad)
                    done = learner.step + 1
                    save = done == learner.total or done % (train.checkpoint_steps or learner.total) == 0
                    save = save or (time.monotonic() - saved_at) / 60 >= train.checkpoint_minutes
                    told = save or done % train.log_every == 0 or self._knn_is_due(done)
                    now = schedule(run, learner.step, learner.total)
                    step = learner.train_step(batch, now, observe=told)
                    progress.advance()
                    stopping = bool(signals)
                    if told or stopping:
                        row = self._metrics(step, now, logged, time.monotonic() - logged_at)
                        metrics.write(row)
                        progress.metrics(row)
                        logged, logged_at = learner.step, time.monotonic()
                    if save or stopping:
                        self.save()
                        saved_at = time.monotonic()
        finally:
            batches.close()
            metrics.close()
            progress.stop()
        saved = checkpoint.newest(self.folder)
        assert saved is not None
        return Outcome(saved, learner.step, learner.total, signals[0] if signals else 0)

    def save(self) -> None:
        """Write a checkpoint of this step.

        Raises:
            TrainingError: if a weight is not finite: the last loss was, but its gradient was not.
        """
        learner = self.learner
        if not torch.stack(torch._foreach_norm(list(learner.model.parameters()))).isfinite().all():
            raise diverged(learner.step, learner.step)
        checkpoint.save(
            self.folder / "checkpoints",
            learner.step,
            student=learner.model,
            teacher=learner.teacher and learner.teacher.network,
            optimizer=learner.adamw,
            memory=learner.memory,
            metadata={
                "hardpatch": __version__,
                "config": to_dict(self.run),
                "mean": learner.model.mean.tolist(),
                "std": learner.model.std.tolist(),
                "step": learner.step,
                "steps": learner.total,
                "images": len(self.source),
                "outputs": self.outputs,
            },
            scaler=learner.fabric.strategy.precision.state_dict(),
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
        learner = self.learner
        learner.step, scaler = checkpoint.restore(
            folder,
            student=learner.model,
            teacher=learner.teacher and learner.teacher.network,
            optimizer=learner.adamw,
            memory=learner.memory,
        )
        if scaler:
            learner.fabric.strategy.precision.load_state_dict(scaler)

    def _batches(self) -> Generator[Batch, None, None]:
        run = self.run
        if self.held is not None:
            return self.held.batches(
                batch_size=run.batch_size, seed=run.seed, start=self.learner.step, crops=run.data.crops
            )
        data, size = run.data, image_size(run)
        transform: TrainTransform | MultiCropTransform
        if self.learner.ibot:
            transform = MultiCropTransform(
                size,
                local_size=(run.ibot.local_size, run.ibot.local_size),
                local_crops=run.ibot.local_crops,
                channels=data.channels,
                global_scale=data.crop_scale,
                local_scale=run.ibot.local_scale,
                ratio=data.crop_ratio,
                flip=data.flip,
                color=run.ibot.color,
            )
        else:
            transform = _transform(run)
        device = self.learner.fabric.device
        batches = train_batches(
            self.source,
            transform,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.learner.step,
            workers=resolve_workers(run.data.workers),
            pin_memory=device.type == "cuda",
            crops=data.crops,
        )
        return on_device(batches, device)

    def _metrics(self, step: Step, now: Schedule, logged: int, seconds: float) -> dict[str, float]:
        """A line of metrics: means over the steps since ``logged``, the rest as of ``step``. Waits for the device."""
        learner = self.learner
        means = learner.means.read(logged + 1, learner.step)
        signs = vital_signs(
            step.problem, step.losses, step.noise, now.alpha, now.mask_ratio, learner.grid, learner.masking
        )
        if step.gradient_norm is not None:
            signs["gradient_norm"] = step.gradient_norm
        numbers = {name: value.item() for name, value in signs.items()}
        row = {
            "step": learner.step,
            "epoch": learner.step / self.epoch_steps,
            **means,
            **now.told(self.run),
            **{name: number for name, number in numbers.items() if math.isfinite(number)},
            "images_per_second": (learner.step - logged) * self.run.batch_size / seconds,
        }
        device = learner.fabric.device
        if device.type == "cuda":  # of tensors, at the most since the last line
            row["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        if self._knn_is_due(learner.step):
            row["knn_top1"] = self._knn()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return row

    def _knn_is_due(self, step: int) -> bool:
        every = self.run.knn.every_epochs * self.epoch_steps
        return self.run.knn.train is not None and step // every > (step - 1) // every

    def _knn(self) -> float:
        knn, data, learner = self.run.knn, self.run.data, self.learner
        assert knn.train is not None
        assert knn.val is not None
        found = labeled_features(
            learner.model.eval(),
            knn.train,
            knn.val,
            device=learner.fabric.device,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
        )
        learner.model.train()
        return knn_accuracy(found.train, found.val, classes=len(found.classes), device=learner.fabric.device).top1


def _transform(run: RunConfig) -> TrainTransform:
    data = run.data
    return TrainTransform(
        image_size(run),
        data.channels,
        data.crop_scale,
        data.crop_ratio,
        data.flip,
        color_jitter=data.color_jitter,
        shrink_on_decode=data.shrink_on_decode,
    )


def total_steps(run: RunConfig, images: int) -> int:
    """Optimizer steps of a run over a set of so many ``images``; at least one."""
    if run.steps is not None:
        return run.steps
    return max(1, round((run.epochs or 0.0) * images / run.batch_size))


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
