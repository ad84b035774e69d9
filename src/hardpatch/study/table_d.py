"""Table D: supervised training of a ViT that sees half of each image's patches (supplement, Section D).

If the half with the higher predicted loss gives as good a classifier as all patches, and the other half a worse one,
then the patches that are hard to reconstruct are the most discriminative ones.
"""

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.sources import open_source
from hardpatch.data.statistics import channel_statistics, resolve_statistics
from hardpatch.data.workers import resolve_workers
from hardpatch.measure.features import align_labels
from hardpatch.measure.labels import LARGE_IMAGE
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import masked_count
from hardpatch.methods.mining import hard_patches
from hardpatch.models.encoder import Encoder
from hardpatch.pretrain.build import crops_of, initial_model
from hardpatch.pretrain.sections import RunConfig
from hardpatch.randomness import patch_noise, seed_step
from hardpatch.schedules import learning_rate
from hardpatch.study.rows import Keep
from hardpatch.train import checkpoint
from hardpatch.train.cadence import Cadence
from hardpatch.train.device import start_fabric
from hardpatch.train.loop import fit
from hardpatch.train.optimizer import parameter_groups
from hardpatch.train.progress import Progress
from hardpatch.train.state import TrainingState

KIND = "partial view classifier"
"""Entry in the metadata of checkpoints, by which they are recognized."""


class PartialViewClassifier(nn.Module):
    """Encoder and one linear layer on the mean of the patch tokens that it sees."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Return scores ``[B, classes]``, computed from the patches that the mask leaves.

        The mask is bool ``[B, N]``, True = dropped; with None every patch is seen.
        """
        return self.head(self.encoder(images, mask)[:, 1:].mean(dim=1))


def dropped_patches(keep: Keep, difficulty: Tensor | None, noise: Tensor, ratio: float) -> Tensor | None:
    """Return the mask of the dropped patches, bool ``[B, N]``, True = dropped; None if all patches are kept.

    Args:
        keep: patches to keep: the hardest, the easiest, random ones, or all.
        difficulty: predicted loss ``[B, N]``; only the hardest and the easiest need it.
        noise: uniform in [0, 1), ``[B, N]``.
        ratio: share of the patches to drop.
    """
    if keep == "all":
        return None
    dropped = masked_count(noise.shape[1], ratio)
    if keep == "random":
        return hard_patches(None, noise, dropped, 0)
    return hard_patches(difficulty, noise, dropped, dropped, "easy" if keep == "hardest" else "hard")


class TableDResult(NamedTuple):
    """Result of :func:`train_supervised`."""

    accuracies: dict[str, float]
    """top-1 on the validation images: ``supervised`` with the kind of patches that it was trained on, ``whole`` with
    all patches; empty if the run was interrupted"""
    signal: int
    """number of the signal that interrupted the run, 0 for none"""


def train_supervised(
    run: RunConfig, folder: Path, val: str, keep: Keep, predictor: HPM | None, progress: Progress
) -> TableDResult:
    """Train on the labels of ``run.data``, from the newest checkpoint in ``folder`` if there is one.

    Args:
        run: model, data, optimizer, length; ``method.mask_ratio`` is the share of patches to drop.
        folder: of the run.
        val: labeled images to evaluate on.
        keep: patches to keep.
        predictor: teacher of a pre-training run, whose predicted loss is the difficulty.
        progress: shows steps and metrics.

    Raises:
        UserError: if the data cannot be read or has no labels.
        TrainingError: if the loss becomes NaN or infinite.
    """
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    folder.mkdir(parents=True, exist_ok=True)
    job = TableDJob(run, folder, val, keep, predictor, fabric)
    newest = checkpoint.newest(folder)
    if newest is not None:
        job.restore(newest)
    signal = fit(job, progress)
    if job.step < job.total:
        return TableDResult({}, signal)
    return TableDResult(job.accuracies or job.evaluate(), 0)


class TableDJob:
    """Plain supervised training: AdamW, one cosine, crops and flips; see :func:`train_supervised`."""

    advice = "a lower optim.base_lr, a lower optim.clip, or train.precision fp32"

    def __init__(
        self, run: RunConfig, folder: Path, val: str, keep: Keep, predictor: HPM | None, fabric: Fabric
    ) -> None:
        self.run, self.folder, self.keep, self.fabric = run, folder, keep, fabric
        self.predictor = None if predictor is None else predictor.to(fabric.device)
        self.source, self.val = open_source(run.data.path), open_source(val)
        classes, val_labels = align_labels(self.source, self.val)
        self.val_labels = val_labels.to(fabric.device)
        self.images, self.batch_size = len(self.source), run.batch_size
        self.step, self.total = 0, run.total_steps(self.images)

        def compute() -> tuple[tuple[float, ...], tuple[float, ...]]:
            return channel_statistics(self.source, run.data.channels, run.seed)

        # Only its encoder and its normalization of the pixels are used.
        self.plain = initial_model(run, *resolve_statistics(run.data.mean, run.data.std, compute)).to(fabric.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.model = PartialViewClassifier(self.plain.host.encoder, len(classes)).to(fabric.device)
        adamw = torch.optim.AdamW(parameter_groups(self.model, run.optim.weight_decay), lr=0.0, betas=run.optim.betas)
        self.network, self.optimizer = fabric.setup(self.model, adamw)
        self.state = TrainingState(fabric, self.model, adamw)
        train = run.train
        self.cadence = Cadence(self.total, train.log_every, train.checkpoint_minutes, train.checkpoint_steps)
        self.bad_files = BadFiles(self.images, run.data.max_bad_fraction)
        self.bad_val = BadFiles(len(self.val), run.data.max_bad_fraction)
        self.accuracies: dict[str, float] = {}
        self._loss_sum, self._steps = torch.zeros((), device=fabric.device), 0

    def batches(self) -> Generator[Batch, None, None]:
        """Yield batches of random crops, from the next step on."""
        return train_batches(
            self.source,
            crops_of(self.run),
            batch_size=self.run.batch_size,
            seed=self.run.seed,
            start=self.step,
            workers=resolve_workers(self.run.data.workers),
            pin_memory=self.fabric.device.type == "cuda",
        )

    def train_step(self, batch: Batch, *, observe: bool = False) -> None:
        """Take one optimizer step."""
        run = self.run
        count = 1 if run.optim.accumulation_steps == "auto" else run.optim.accumulation_steps
        seed_step(run.seed, self.step)
        pixels, samples, labels = (part.chunk(count) for part in self._on_device(batch))
        for images, indices, truth in zip(pixels, samples, labels, strict=True):
            loss = F.cross_entropy(self.scores(images, indices, self.keep), truth)
            self.fabric.backward(loss / count)
            self._loss_sum += loss.detach() / count
        for group in self.state.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        if run.optim.clip is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=run.optim.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._steps += 1

    def scores(self, pixels: Tensor, samples: Tensor, keep: Keep) -> Tensor:
        """Return scores ``[B, classes]`` of uint8 ``pixels``, computed from the patches to keep."""
        rows, columns = self.plain.grid
        noise = patch_noise(self.run.seed, self.step, samples, rows * columns)
        difficulty = None
        if self.predictor is not None and keep in ("hardest", "easiest"):
            with torch.no_grad(), self.fabric.autocast():
                difficulty = self.predictor.predict_loss(self.predictor.normalize(pixels))
        mask = dropped_patches(keep, difficulty, noise, self.run.method.mask_ratio)
        return self.network(self.plain.normalize(pixels), mask).float()

    def metrics(self) -> dict[str, float]:
        """Return the mean loss since the last call, and the learning rate of the last step."""
        row = {"loss": self._loss_sum.item() / self._steps, "lr": self._learning_rate(self.step - 1)}
        self._loss_sum.zero_()
        self._steps = 0
        return row

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Measure top-1 with the kind of patches that it was trained on, and with all; sets :attr:`accuracies`."""
        self.model.eval()
        size = self.run.image_size
        transform = EvalTransform(size, self.run.data.channels, 0.875 if min(size) >= LARGE_IMAGE else 1.0)
        workers = resolve_workers(self.run.data.workers)
        views: dict[str, Keep] = {"supervised": self.keep, "whole": "all"}
        correct = {name: torch.zeros((), dtype=torch.int64, device=self.fabric.device) for name in views}
        images, bad = 0, []
        for batch in eval_batches(self.val, transform, batch_size=256, workers=workers):
            pixels, samples, labels = self._on_device(batch)
            for name, keep in views.items():
                correct[name] += (self.scores(pixels, samples, keep).argmax(dim=1) == self.val_labels[labels]).sum()
            images += len(labels)
            bad += batch.bad
        self.bad_val.update(bad)
        self.model.train()
        self.accuracies = {name: int(count) / images for name, count in correct.items()}
        return self.accuracies

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self.state.save(self.folder, self.step, {"kind": KIND, "steps": self.total, "images": self.images})

    def restore(self, saved: Path) -> None:
        """Load a checkpoint of this run exactly."""
        self.step = self.state.restore(saved)

    def _learning_rate(self, step: int) -> float:
        optim = self.run.optim
        return learning_rate(step / self.total, self.run.peak_lr, optim.min_lr, optim.warmup)

    def _on_device(self, batch: Batch) -> list[Tensor]:
        parts = (batch.images, batch.indices, batch.labels)
        return [part.to(self.fabric.device, non_blocking=True) for part in parts]
