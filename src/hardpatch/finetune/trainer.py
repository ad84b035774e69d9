"""Fine-tuning and the linear probe as a job of the training loop."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.finetune.augment import FinetuneTransform
from hardpatch.finetune.balance import class_counts, image_weights
from hardpatch.finetune.early import EarlyStopping
from hardpatch.finetune.measure import ClassifierEvaluation, Predict, classify, predictions
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.objective import ClassObjective, Evaluation, TargetObjective
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.processes import average, on_first, process_rank
from hardpatch.randomness import seed_step
from hardpatch.schedules import learning_rate
from hardpatch.train import checkpoint
from hardpatch.train.bad_steps import BadSteps, running_statistics
from hardpatch.train.cadence import cadence_of
from hardpatch.train.device import loader_workers
from hardpatch.train.extension import course
from hardpatch.train.freeze import freeze
from hardpatch.train.optimizer import fused_on_gpu, layer_decay_groups, set_learning_rate
from hardpatch.train.parallel import take_part, without_exchange
from hardpatch.train.settings import to_dict
from hardpatch.train.sharding import WholeCopy
from hardpatch.train.state import TrainingState

DropPatches = Callable[[Tensor, Tensor, int], Tensor | None]
"""Chooses patches that the classifier does not see, from normalized images ``[B, C, H, W]``, their indices in the data
set ``[B]`` and the step: bool ``[B, N]``, True = dropped, or None for no patch."""

KIND = "classifier"
"""``kind`` in the metadata of checkpoints, which a pre-training run does not have."""


class FinetuneJob:
    """Training of a classifier, for the training loop.

    Args:
        run: the settings.
        folder: folder of the run.
        train, val: labeled images.
        classes: names of the classes, in the order of the labels of ``train``.
        val_labels: index in ``classes`` of each label of ``val``, int64 ``[labels of val]``; see
            :func:`~hardpatch.measure.features.align_labels`.
        model: network to start from.
        fabric: device and precision.
        drop_patches: chooses patches that are dropped, in training and evaluation; None drops none.
        targets: objective of a task of several labels or numbers for each image; None for one class each.
    """

    def __init__(
        self,
        run: FinetuneSettings,
        folder: Path,
        train: Source,
        val: Source,
        classes: tuple[str, ...],
        val_labels: Tensor,
        model: Classifier,
        fabric: Fabric,
        drop_patches: DropPatches | None = None,
        targets: TargetObjective | None = None,
    ) -> None:
        self.run, self.folder, self.source, self.val, self.classes = run, folder, train, val, classes
        self.frozen = freeze(model.encoder, run.freeze)
        self.model = model.to(fabric.device).train()
        self.val_labels, self.fabric, self.drop_patches = val_labels.to(fabric.device), fabric, drop_patches
        self.image_size = crop_size(run, model)
        self.images, self.batch_size = len(train), run.batch_size
        self.step, self.planned = 0, run.total_steps(self.images)
        self.early = None if run.patience is None else EarlyStopping(folder, run.patience)
        self.best_model: Classifier | None = None
        self.average = None
        if run.ema is not None:
            if run.strategy == "fsdp2" and process_rank().world_size > 1:
                raise UserError("--ema: the moving average is whole in each process; expected --strategy ddp")
            from timm.utils.model_ema import ModelEmaV3

            self.average = ModelEmaV3(self.model, decay=run.ema, use_warmup=True)
        self.part = take_part(run.batch_size, run.accumulation_steps, even=bool(run.mixup or run.cutmix))
        self.whole_model = WholeCopy(fabric, self.model)
        self.network = fabric.setup_module(self.model)
        optimizer = _optimizer(run, self.model, fabric)
        self.optimizer = cast(Any, fabric.setup_optimizers(optimizer))
        averaged = None if self.average is None else self.average.module
        self._loss_sum, self._steps = torch.zeros((), device=fabric.device), 0
        running = [*running_statistics(self.model), self._loss_sum]
        self.bad_steps = BadSteps(fabric, self.optimizer, run, running)
        self.state = TrainingState(
            fabric, self.model, optimizer, self.bad_steps, averaged, background=run.background_saving
        )
        self.counts = class_counts(train, len(classes)) if run.counts_classes and targets is None else None
        self.objective = targets or ClassObjective(run, classes, self.counts, self.val_labels)
        self.weights = image_weights(train, len(classes)) if run.balances else None
        self.cadence = cadence_of(run, self.planned, self.images)
        self.bad_files = BadFiles(self.images, run.max_bad_fraction, "--max_bad_fraction", source=train)
        self.bad_val = BadFiles(len(val), run.max_bad_fraction, "--max_bad_fraction", source=val)
        self.evaluation: Evaluation | None = None

    @property
    def total(self) -> int:
        """Optimizer steps of the run: those that were planned, or those done if it stops early."""
        return self.step if self.early is not None and self.early.stops else self.planned

    @property
    def evaluated_model(self) -> Classifier:
        """Network that is evaluated: the best one of a finished run with patience, else the moving average if any."""
        if self.best_model is not None:
            return self.best_model
        return self.whole_model.current if self.average is None else self.average.module

    def batches(self) -> Generator[Batch, None, None]:
        """Load augmented batches, starting with that of the next step."""
        run, model = self.run, self.model
        transform = FinetuneTransform(
            self.image_size,
            model.reading,
            run.crop_scale,
            run.crop_ratio,
            run.flip,
            mean=tuple(model.mean.tolist()),
            std=tuple(model.std.tolist()),
            magnitude=run.randaugment,
            magnitude_std=run.randaugment_std,
            erase=run.erase,
        )
        return train_batches(
            self.source,
            transform,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.step,
            workers=loader_workers(run.workers),
            rank=self.part.rank,
            world_size=self.part.world_size,
            pin_memory=self.fabric.device.type == "cuda",
            weights=self.weights,
        )

    def train_step(self, batch: Batch, *, observe: bool = False) -> None:
        """Take one optimizer step."""
        run, device = self.run, self.fabric.device
        seed_step(run.seed, self.step)
        self.bad_steps.begin()
        images = self.model.normalize(batch.images.to(device, non_blocking=True))
        images, targets = self.objective.prepare(images, batch.labels.to(device, non_blocking=True), self.step)
        count = run.accumulation_steps
        parts = (images.chunk(count), batch.indices.to(device, non_blocking=True).chunk(count), targets.chunk(count))
        for number, (part, indices, target) in enumerate(zip(*parts, strict=True), 1):
            with without_exchange(self.fabric, self.network, number < count):
                loss = self.objective.loss(self.network(part, self._dropped(part, indices)).float(), target)
                self.fabric.backward(self.bad_steps.nan_unless_finite(loss) / count)
            self._loss_sum += loss.detach() / count
        set_learning_rate(self.state.optimizer, self._learning_rate(self.step))
        self.bad_steps.update(run.clip)
        self.step += 1
        self._steps += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)

    def metrics(self) -> dict[str, float]:
        """Return the mean loss since the last call, and the learning rate of the last step."""
        loss, steps = average(self._loss_sum).item(), self._steps - self.bad_steps.read_left_out()
        self._loss_sum.zero_()
        self._steps = 0
        return ({"loss": loss / steps} if steps else {}) | {"lr": self._learning_rate(self.step - 1)}

    def evaluate(self) -> dict[str, float]:
        """Evaluate all validation images and set :attr:`evaluation`; images that cannot be decoded are left out.

        Raises:
            UserError: if too many of them cannot be decoded.
        """
        self.whole_model.gather()
        self.evaluation = on_first(lambda: self.objective.evaluate(self.predict(self.val), len(self.classes)))
        if self.early is not None:
            self.early.update(self.step, self.evaluation.score, self.evaluated_model, self.metadata)
        self.model.train()
        self.whole_model.release()
        self.bad_val.update(self.evaluation.bad)
        return self.evaluation.metrics()

    def classify(self, source: Source, labels: Tensor, model: Classifier | None = None) -> ClassifierEvaluation:
        """Classify the images of a set; see :func:`~hardpatch.finetune.measure.classify`.

        Args:
            source: labeled images.
            labels: class of each label of ``source``, int64.
            model: another network than that of the run.
        """
        result = classify(self.predict(source, model), labels.to(self.fabric.device), len(self.classes))
        (model or self.evaluated_model).train()
        return result

    def predict(self, source: Source, model: Classifier | None = None) -> Predict:
        """Yield outputs for the images of a set, with the network in eval mode."""
        return predictions(
            (model or self.evaluated_model).eval(),
            source,
            self.fabric,
            size=self.image_size,
            batch_size=max(1, self.run.batch_size // self.run.accumulation_steps),
            workers=loader_workers(self.run.workers),
            dropped=self._dropped,
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """Plain values from which the classifier is rebuilt."""
        described = describe(self.run, self.model, self.classes, self.image_size)
        return {**described, **self.objective.described(), "steps": self.planned, "images": self.images}

    def save(self) -> None:
        """Write a checkpoint of this step."""
        run = self.run
        self.state.save(self.folder, self.step, self.metadata, keep=run.keep_checkpoints, keep_every=run.keep_every)

    def restore(self, saved: Path) -> None:
        """Go back to a checkpoint of this run, to the bit.

        Raises:
            UserError: if the data set has other classes or another number of images than at the start of the run.
        """
        metadata = checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {}
        if (metadata["images"], metadata["classes"]) != (self.images, list(self.classes)):
            raise UserError(
                f"--resume: the run began with {metadata['images']} images of {len(metadata['classes'])} classes and "
                f"--train now has {self.images} of {len(self.classes)}, or classes of other names; restore the data "
                "set, or start a new run with another --out"
            )
        self.step = self.state.restore(saved, to_dict(self.run), "finetune")
        if self.early is not None:
            self.early.restore(self.step)

    def _dropped(self, images: Tensor, indices: Tensor) -> Tensor | None:
        return None if self.drop_patches is None else self.drop_patches(images, indices, self.step)

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        planned = course(self.planned, self.run.extensions)
        rate = partial(finetune_learning_rate, run=self.run, images=self.images)
        return planned.rate(step, rate) * self.bad_steps.lr_factor


def finetune_learning_rate(step: int, total: int, run: FinetuneSettings, images: int) -> float:
    """Return the learning rate of the step after ``step`` of ``total`` on ``images``: a warm-up, then half a cosine."""
    whole = run.total_steps(images) == total and run.epochs
    epochs = run.epochs if whole and run.epochs else total * run.batch_size / images
    warmup = 0.1 if run.warmup_epochs is None else run.warmup_epochs / epochs
    return learning_rate(step / total, run.peak_lr, run.min_lr, warmup)


def describe(run: FinetuneSettings, model: Classifier, classes: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
    """Return plain values from which :func:`hardpatch.finetune.file.load_classifier` builds a network again."""
    return {
        "kind": KIND,
        "finetune": to_dict(run),
        "encoder": encoder_settings(model.encoder),
        "classes": list(classes),
        "image_size": list(size),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "task": run.task,
        "target_names": list(classes),
        "reading": model.reading.to_dict(),
    }


def _optimizer(run: FinetuneSettings, model: Classifier, fabric: Fabric) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters that are trained."""
    groups = layer_decay_groups(model, run.weight_decay, run.decay_per_layer)
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=run.betas[0], fused=fused_on_gpu(fabric, run.precision))
    # The fused step unscales float16 gradients by itself, after they should have been clipped.
    fused = fabric.device.type != "mps" and run.precision != "fp16"
    return torch.optim.AdamW(groups, lr=0.0, betas=run.betas, fused=fused)


def crop_size(run: FinetuneSettings, model: Classifier) -> tuple[int, int]:
    """Return (height, width) of the crops in pixels."""
    if run.crop_size is not None:
        return run.crop_size
    patch = model.encoder.patch_size
    return model.encoder.grid[0] * patch, model.encoder.grid[1] * patch
