"""Training of UperNet on an encoder: the recipe of BEiT and MAE for ADE20K, and one for a CPU."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.segment.batches import LabeledBatch, SegmentationTransform, segmentation_batches
from hardpatch.segment.data import IGNORED, SegmentationSet
from hardpatch.segment.measure import Inference, Judged, evaluate
from hardpatch.segment.model import UperNet
from hardpatch.segment.settings import SegmentationRun
from hardpatch.train import supervised
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.optimizer import layer_decay_groups
from hardpatch.train.settings import to_dict

if TYPE_CHECKING:
    from hardpatch.train.progress import Progress

KIND = "segmenter"
"""In the metadata of checkpoints, which are no pre-training run's."""
BETAS = (0.9, 0.999)


def inference_of(run: SegmentationRun) -> Inference:
    """How images are segmented when the run is judged."""
    return Inference(run.short_side, run.inference, (run.crop[0], run.crop[1]), (run.stride[0], run.stride[1]))


def poly_learning_rate(step: int, run: SegmentationRun) -> float:
    """For the optimizer step after ``step``: ``(1 - step / steps) ** power`` of the peak, while warming up
    ``step / warmup_steps`` of that (mmsegmentation's policy ``poly``, whose warm-up starts at a millionth)."""
    falling = run.min_lr + (run.lr - run.min_lr) * (1 - step / run.steps) ** run.power
    return falling * min(1.0, step / run.warmup_steps) if run.warmup_steps else falling


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels that are not ignored, at their own size, in float32; 0 if all of them are.

    ``[B, classes, h, w]`` and uint8 ``[B, H, W]`` to ``[]``.
    """
    whole = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(whole, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def resolve_precision(run: SegmentationRun, device: torch.device) -> Literal["fp32", "bf16"]:
    """What ``auto`` stands for."""
    if run.precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return run.precision


class SegmentationTrainer:
    """A segmenter in training.

    Args:
        model: on the device.
        run: the settings.
        train, val: images and label maps.
        folder: of the run; checkpoints go into its ``checkpoints``.
        device, workers: where, and how many processes decode.
        checkpoint_minutes: between checkpoints.
    """

    def __init__(
        self,
        model: UperNet,
        run: SegmentationRun,
        train: SegmentationSet,
        val: SegmentationSet,
        folder: Path,
        *,
        device: torch.device,
        workers: int = 0,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.model, self.run, self.train, self.val, self.folder = model, run, train, val, folder
        self.device, self.workers, self.checkpoint_minutes = device, workers, checkpoint_minutes
        self.precision = resolve_precision(run, device)
        self.optimizer = torch.optim.AdamW(
            layer_decay_groups(model, run.weight_decay, run.layer_decay), lr=run.lr, betas=BETAS
        )
        self.step = 0
        self.sums = torch.zeros(3, device=device)

    def restore(self) -> None:
        """Go back to the newest checkpoint of the folder, if there is one, to the bit."""
        self.step = supervised.restore(self.folder, self.model, self.optimizer)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        metadata = {"kind": KIND, "run": to_dict(self.run)}
        supervised.save(self.folder, self.step, self.model, self.optimizer, metadata)

    def fit(self, progress: "Progress", interrupted: Callable[[], bool] = lambda: False) -> Judged | None:
        """Train to the end, from where the run is; None where it was interrupted, which ends after the step.

        Raises:
            UserError: if a file cannot be decoded.
            TrainingError: if the loss becomes NaN or infinite.
        """
        run = self.run
        metrics = MetricsLog(self.folder, self.step)
        batches = segmentation_batches(
            self.train,
            self._transform(),
            batch_size=run.batch_size,
            channels=self.model.encoder.channels,
            seed=run.seed,
            start=self.step,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        judged: Judged | None = None
        saved_at = logged_at = time.monotonic()
        logged, stopping = self.step, False
        self.model.train()
        progress.start(self.step, run.steps, run.batch_size)
        try:
            while self.step < run.steps and not stopping:
                lr = self.train_step(next(batches))
                progress.advance()
                stopping = interrupted()
                last = self.step == run.steps
                due = last or self.step % run.val_every == 0
                if due or stopping or self.step % run.log_every == 0:
                    row = self._means(logged)
                    row |= {"lr": lr, "images_per_second": self._speed(logged, logged_at)}
                    if due:
                        judged = self.judge(keep=spread(len(self.val)) if last else ())
                        row |= judged.measures.headline()
                    metrics.write(row)
                    progress.metrics(row)
                    logged, logged_at = self.step, time.monotonic()
                if stopping or last or (time.monotonic() - saved_at) / 60 >= self.checkpoint_minutes:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            batches.close()
            metrics.close()
            progress.stop()
        if self.step < run.steps:
            return None
        return judged or self.judge(keep=spread(len(self.val)))  # a finished run that is called again is judged again

    def train_step(self, batch: LabeledBatch) -> float:
        """One optimizer step; returns the learning rate of the heads. Nothing here waits for the device."""
        run, model = self.run, self.model
        supervised.seed_step(run.seed, self.step)
        lr = poly_learning_rate(self.step, run)
        supervised.set_rates(self.optimizer, lr)
        images = model.normalize(batch.images.to(self.device, non_blocking=True))
        labels = batch.labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = model(images)
        main, auxiliary = pixel_loss(logits.main, labels), pixel_loss(logits.auxiliary, labels)
        loss = main + run.auxiliary_weight * auxiliary
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.sums += torch.stack([loss, main, auxiliary]).detach()
        return lr

    def judge(self, keep: tuple[int, ...] = ()) -> Judged:
        """Measure on the validation set."""
        return evaluate(
            self.model,
            self.val,
            inference_of(self.run),
            device=self.device,
            workers=self.workers,
            precision=self.precision,
            keep=keep,
        )

    def _transform(self) -> SegmentationTransform:
        run = self.run
        return SegmentationTransform(
            (run.crop[0], run.crop[1]),
            run.short_side,
            scale=(run.scale[0], run.scale[1]),
            cat_max_ratio=run.cat_max_ratio,
            flip=run.flip,
            photometric=run.photometric,
            fill=tuple(round(255 * value) for value in self.model.mean.flatten().tolist()),
        )

    def _means(self, logged: int) -> dict[str, float]:
        advice = f"an --lr below {self.run.lr:g}, or --precision fp32"
        means = supervised.read_means(self.sums, logged + 1, self.step, advice)
        row = {"step": self.step, "epoch": self.step * self.run.batch_size / len(self.train)}
        return row | dict(zip(("loss", "main_loss", "auxiliary_loss"), means, strict=True))

    def _speed(self, logged: int, since: float) -> float:
        return (self.step - logged) * self.run.batch_size / (time.monotonic() - since)


def spread(number: int, at_most: int = 6) -> tuple[int, ...]:
    """Up to so many of ``number`` indices, evenly spread: the images that pictures show."""
    shown = min(number, at_most)
    return tuple((2 * k + 1) * number // (2 * shown) for k in range(shown))
