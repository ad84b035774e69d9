"""Training of UperNet on an encoder, as a job of the training loop: the recipe of BEiT and MAE for ADE20K."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.data.bad_files import BadFiles
from hardpatch.errors import UserError
from hardpatch.models.pixels import mean_color
from hardpatch.processes import global_mean, on_first
from hardpatch.randomness import seed_step
from hardpatch.segment.batches import LabeledBatch, SegmentationTransform, segmentation_batches
from hardpatch.segment.data import IGNORED, SegmentationSet
from hardpatch.segment.file import describe, rebuild
from hardpatch.segment.labels import Labels
from hardpatch.segment.measure import EvaluationResult, Inference, evaluate
from hardpatch.segment.model import UperNet
from hardpatch.segment.settings import SegmentSettings
from hardpatch.train import checkpoint
from hardpatch.train.bad_steps import BadSteps, means_of, running_statistics
from hardpatch.train.cadence import cadence_of
from hardpatch.train.device import loader_workers
from hardpatch.train.extension import course
from hardpatch.train.optimizer import BETAS, fused_on_gpu, layer_decay_groups, set_learning_rate
from hardpatch.train.parallel import take_part, without_exchange
from hardpatch.train.resume import ValuesOf
from hardpatch.train.settings import to_dict
from hardpatch.train.sharding import WholeCopy
from hardpatch.train.state import TrainingState

KIND = "segmenter"
"""Entry in the metadata of checkpoints, by which they are recognized."""
PICTURED = 6
"""Validation images whose predictions are drawn."""


class SegmentJob:
    """A segmenter in training.

    Args:
        run: the settings, with a learning rate (:func:`hardpatch.segment.settings.resolved`).
        folder: of the run.
        train: images and label maps to learn from.
        val: images and label maps to evaluate on.
        model: the network to start from.
        fabric: device and precision.
        unreadable: "path: reason" of the pairs that were left out of ``train`` and ``val``, to count and log them.

    Raises:
        UserError: if too many pairs were left out.
    """

    def __init__(
        self,
        run: SegmentSettings,
        folder: Path,
        train: SegmentationSet,
        val: SegmentationSet,
        model: UperNet,
        fabric: Fabric,
        unreadable: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ) -> None:
        self.run, self.folder, self.train, self.val, self.fabric = run, folder, train, val, fabric
        self.model = model.to(fabric.device).train()
        self.images, self.batch_size = len(train), run.batch_size
        self.step, self.total = 0, run.total_steps(self.images)
        self.part = take_part(run.batch_size, run.accumulation_steps)
        self.model.encoder.norm.requires_grad_(False)  # the maps are taken before it
        self.whole_model = WholeCopy(fabric, self.model)
        self.network = fabric.setup_module(self.model)
        groups = layer_decay_groups(self.model, run.weight_decay, run.layer_decay or 1.0)
        assert run.lr is not None
        adamw = torch.optim.AdamW(groups, lr=run.lr, betas=BETAS, fused=fused_on_gpu(fabric, run.precision))
        self.optimizer = cast(Any, fabric.setup_optimizers(adamw))
        self._sums, self._steps = torch.zeros(3, device=fabric.device), 0
        running = [*running_statistics(self.model), self._sums]
        self.bad_steps = BadSteps(fabric, self.optimizer, run, running)
        self.state = TrainingState(fabric, self.model, adamw, self.bad_steps, background=run.background_saving)
        self.inference = Inference(
            run.short_side, run.inference, (run.crop[0], run.crop[1]), (run.stride[0], run.stride[1])
        )
        self.cadence = cadence_of(run, self.total, self.images)
        self.bad_files, self.bad_val = (
            BadFiles(len(pairs) + len(bad), run.max_bad_fraction, "--max_bad_fraction")
            for pairs, bad in zip((train, val), unreadable, strict=True)
        )
        for files, bad in zip((self.bad_files, self.bad_val), unreadable, strict=True):
            files.update(bad)
        self.evaluation: EvaluationResult | None = None

    def batches(self) -> Generator[LabeledBatch, None, None]:
        """Load augmented batches from the next step on."""
        run = self.run
        transform = SegmentationTransform(
            (run.crop[0], run.crop[1]),
            run.short_side,
            scale=(run.scale[0], run.scale[1]),
            cat_max_ratio=run.cat_max_ratio,
            flip=run.flip,
            photometric=run.photometric,
            fill=mean_color(self.model),
            reading=self.model.reading,
        )
        return segmentation_batches(
            self.train,
            transform,
            batch_size=run.batch_size,
            reading=self.model.reading,
            seed=run.seed,
            start=self.step,
            workers=loader_workers(run.workers),
            rank=self.part.rank,
            world_size=self.part.world_size,
            pin_memory=self.fabric.device.type == "cuda",
        )

    def train_step(self, batch: LabeledBatch, *, observe: bool = False) -> None:
        """Take one optimizer step."""
        run, device, count = self.run, self.fabric.device, self.run.accumulation_steps
        seed_step(run.seed, self.step)
        self.bad_steps.begin()
        set_learning_rate(self.state.optimizer, self._learning_rate(self.step))
        images = self.model.normalize(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        parts = zip(images.chunk(count), labels.chunk(count), strict=True)
        for number, (micro_batch, truth) in enumerate(parts, 1):
            with without_exchange(self.fabric, self.network, number < count):
                logits = self.network(micro_batch)
                main, auxiliary = pixel_loss(logits.main, truth), pixel_loss(logits.auxiliary, truth)
                loss = main + run.auxiliary_weight * auxiliary
                self.fabric.backward(self.bad_steps.nan_unless_finite(loss) / count)
            self._sums += torch.stack([loss, main, auxiliary]).detach() / count
        self.bad_steps.update(run.clip)
        self.step += 1
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Return mean losses since the last call, and the learning rate of the last step."""
        means = means_of(self._sums, self._steps, self.bad_steps)
        self._steps = 0
        losses = dict(zip(("loss", "main_loss", "auxiliary_loss"), means, strict=False))
        return losses | {"lr": self._learning_rate(self.step - 1)}

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        planned = course(self.total, self.run.extensions)
        return planned.rate(step, partial(poly_learning_rate, run=self.run)) * self.bad_steps.lr_factor

    def evaluate(self) -> dict[str, float]:
        """Segment the validation images, keep the result as :attr:`evaluation`, and return its three main numbers.

        Raises:
            UserError: if too many of them cannot be decoded.
        """
        model = self.whole_model.gather()
        self.evaluation = on_first(
            lambda: evaluate(
                model,
                self.val,
                self.inference,
                device=self.fabric.device,
                workers=loader_workers(self.run.workers),
                autocast=self.fabric.autocast,
                keep=evenly_spread(len(self.val)) if self.step == self.total else (),
                bad_files=self.bad_val,
            )
        )
        self.whole_model.release()
        return self.evaluation.measures.headline()

    @property
    def metadata(self) -> dict[str, Any]:
        """Plain values from which the network is rebuilt."""
        return {
            "kind": KIND,
            "segment": to_dict(self.run),
            **describe(self.model, self.train.labels.names, self.inference),
            "steps": self.total,
            "images": self.images,
        }

    def save(self) -> None:
        """Write a checkpoint of this step."""
        run = self.run
        self.state.save(self.folder, self.step, self.metadata, keep=run.keep_checkpoints, keep_every=run.keep_every)

    def restore(self, saved: Path) -> None:
        """Go back to a checkpoint of this run, to the bit."""
        self.step = self.state.restore(saved, to_dict(self.run), "segment")


def poly_learning_rate(step: int, total: int, run: SegmentSettings) -> float:
    """Return the learning rate of the step after ``step``: mmsegmentation's policy ``poly`` with a linear warm-up.

    It falls from ``lr`` to ``min_lr`` as ``(1 - step / total) ** power``, multiplied by ``step / warmup_steps`` during
    the warm-up.
    """
    assert run.lr is not None
    lr = run.min_lr + (run.lr - run.min_lr) * (1 - step / total) ** run.power
    return lr * min(1.0, step / run.warmup_steps) if run.warmup_steps else lr


def rate_of(folder: str | Path | None) -> ValuesOf:
    """Return a function for the learning rate of a run in ``folder``; its checkpoint knows it where no one set it."""

    @cache
    def saved() -> float:
        newest = checkpoint.newest(Path(folder or "."))
        metadata = {} if newest is None else checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
        return float(metadata["segment"]["lr"])

    def rate(run: SegmentSettings, images: int, step: int, total: int) -> tuple[float]:
        return (poly_learning_rate(step, total, run if run.lr is not None else replace(run, lr=saved())),)

    return rate


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pixels that are not ignored, in float32; 0 if all of them are.

    In several processes the mean of their results is that of the whole batch.

    Args:
        logits: ``[B, classes, h, w]``; resized to the labels.
        labels: uint8 ``[B, H, W]``.
    """
    resized = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(resized, labels.long(), ignore_index=IGNORED, reduction="sum")
    return global_mean(total, (labels != IGNORED).sum())


def evenly_spread(count: int, at_most: int = PICTURED) -> tuple[int, ...]:
    """Return up to ``at_most`` of the indices below ``count``, evenly spread: the images that pictures show."""
    shown = min(count, at_most)
    return tuple((2 * k + 1) * count // (2 * shown) for k in range(shown))


def of_checkpoint(saved: Path, settings: SegmentSettings, labels: Labels) -> UperNet:
    """Build the network of a checkpoint: a resumed run does not need the weights that it started from.

    Raises:
        UserError: if the checkpoint is of another kind or has other classes.
    """
    metadata = checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {}
    if metadata.get("kind") != KIND or "encoder" not in metadata:
        raise UserError(f"--resume: expected a checkpoint of hardpatch segment, {saved} is of another kind or version")
    if metadata["classes"] != list(labels.names):
        had, has = ", ".join(metadata["classes"]), ", ".join(labels.names)
        raise UserError(f"--resume: {saved} has classes {had}, the data {has}; restore them, or take another --out")
    return rebuild(metadata, dropout=settings.dropout)
