"""Checks of a run: the same measurements of the same images before, during and after the training.

Nothing here changes the training: no weight, no random number of a step.
"""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.configuration.sections import RunConfig
from hardpatch.files import atomic_path, optional_file
from hardpatch.measure.difficulty import fixed_masks, losses_over_masks, whole_targets
from hardpatch.measure.features import Features, extract
from hardpatch.measure.knn import DINO_K, knn_accuracy
from hardpatch.measure.linear import linear_probe
from hardpatch.measure.spread import nearest_neighbors, rankme, shared_neighbors
from hardpatch.measure.trivial import trivial_losses
from hardpatch.methods.hpm import HPM
from hardpatch.methods.losses import rank_correlation
from hardpatch.methods.masking import masked_count
from hardpatch.methods.targets import HostTargets, Target, pixels
from hardpatch.methods.teacher import Teacher
from hardpatch.pickles import save_tensors
from hardpatch.pretrain.looked_at import ImageSet, LabeledSets, LookedAt
from hardpatch.train.device import autocast_dtype
from hardpatch.train.metrics import read_metrics

log = logging.getLogger("hardpatch")

NEIGHBORS = 10
"""Nearest neighbors of an image that are compared from check to check."""
LEAST_DRAWS = 2
"""Fixed random masks of each image, at least."""
SEED = 0x636865636B
"""Distinguishes the masks of the checks from those of the training."""
TRAINED = 64
"""Images that are trained on between two checks for each image that a check looks at, at least: checks stay cheap."""
EARLY = 0.02
"""Share of the training before the first of several checks."""
NEIGHBOR_FILE = "neighbors.safetensors"


class Losses(NamedTuple):
    """Losses of some images over fixed random masks, on the CPU."""

    true_loss: Tensor
    """``[n, N]``"""
    masked: Tensor | None
    """the student's predictions of them, ``[n, N]``; None without a loss predictor"""
    whole: Tensor | None
    """difficulty that the teacher predicts from whole images, ``[n, N]``; None without one"""


def check_steps(run: RunConfig, total: int) -> frozenset[int]:
    """Return the steps after which a run is checked; 0 is before the first. A short run has fewer of them."""
    count = min(run.verdict.checks, total * run.batch_size // (TRAINED * run.verdict.images))
    if not run.verdict.checks:
        return frozenset()
    shares = [0.5] if count == 1 else [EARLY, *(k / count for k in range(1, count))]
    during = {max(1, round(share * total)) for share in shares[:count]}
    return frozenset({0, total} | during)


def fewer_checks(run: RunConfig, total: int) -> tuple[str, ...]:
    """Return a line where a short run is checked less often than ``verdict.checks`` says, else nothing."""
    found = len(check_steps(run, total) - {0, total})
    if found >= min(run.verdict.checks, total - 1):
        return ()
    return (
        f"verdict.checks: {found} on the way, not {run.verdict.checks}: {run.verdict.images} images each would take "
        "much of so short a training; fewer verdict.images allow more",
    )


class Monitor:
    """Measurements of a check.

    Args:
        run: the configuration.
        folder: of the run.
        images: what to look at.
        target: network that computes the targets; None for the host's own.
        fabric: device and precision.
    """

    def __init__(self, run: RunConfig, folder: Path, images: LookedAt, target: Target | None, fabric: Any) -> None:
        self.run, self.folder, self.images, self.target, self.fabric = run, folder, images, target, fabric
        self.masked = masked_count(math.prod(run.masking.units), run.method.mask_ratio)
        self.draws = max(LEAST_DRAWS, math.ceil(math.prod(run.masking.units) / self.masked))
        self._constants: dict[str, float] | None = None

    def rows(self, before: int) -> list[dict[str, Any]]:
        """Read the metrics of the earlier checks, those of steps below ``before``."""
        rows = read_metrics(self.folder / "metrics.jsonl")
        return [row for row in rows if "check_loss" in row and row["step"] < before]

    def measure(self, model: HPM, teacher: Teacher | None, step: int, *, linear: bool) -> dict[str, float]:
        """Measure student and teacher after ``step`` and return metrics for the log.

        Args:
            model: the student.
            teacher: None if there is none.
            step: optimizer steps done.
            linear: also train a linear probe, where there are labels.
        """
        training = model.training
        model.eval()
        # a compiled step would be compiled once more for other shapes
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            row = self._measure(model, teacher, step, linear)
        model.train(training)
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        return {name: value for name, value in row.items() if math.isfinite(value)}

    def _measure(self, model: HPM, teacher: Teacher | None, step: int, linear: bool) -> dict[str, float]:
        images, trained, labeled = self.images.images, self.images.trained, self.images.labeled
        losses = self._losses(model, teacher, images)
        row = {"check_loss": float(losses.true_loss.mean())}
        if trained is not None:
            row["check_train_loss"] = float(self._losses(model, teacher, trained).true_loss.mean())
        row |= self._of_images(model, images)
        row |= correlations(losses, remembered=self.run.fast.remember)
        features = self._features(model, images)
        row["check_rankme"] = rankme(features.features)
        row |= self._neighbors(features.features, step)
        if labeled is not None:
            queries = features if labeled.queries is images else self._features(model, labeled.queries)
            row |= self._accuracy(model, labeled, queries, linear=linear)
        return row

    @torch.inference_mode()
    def _losses(self, model: HPM, teacher: Teacher | None, images: ImageSet) -> Losses:
        """Reconstruct images under fixed random masks, and predict their difficulty."""
        target, parts = self.target, []
        if target is None and model.host.uses_teacher:
            assert teacher is not None
            target = HostTargets(teacher.network.host)
        for batch in images.batches():
            pixels, indices = (part.to(self.fabric.device) for part in (batch.images, batch.indices))
            normalized = model.normalize(pixels)
            with self.fabric.autocast():
                output = None if teacher is None else teacher(normalized, difficulty=model.has_predictor)
                losses = losses_over_masks(
                    model,
                    normalized,
                    indices,
                    whole_targets(model, target, pixels, normalized, output),
                    masked=self.masked,
                    draws=self.draws,
                    seed=SEED,
                    predict=model.has_predictor,
                    unit=self.run.masking.unit,
                )
            parts.append(Losses(losses.true_loss, losses.predicted, None if output is None else output.difficulty))
        true_loss, masked, whole = map(_joined, zip(*parts, strict=True))
        assert true_loss is not None
        return Losses(true_loss, masked, whole)

    @torch.inference_mode()
    def _of_images(self, model: HPM, images: ImageSet) -> dict[str, float]:
        """Measure what depends on the images alone: losses of trivial predictors, and how much images differ."""
        if self._constants is not None:
            return self._constants
        host, count = model.host, 0
        sums: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        square: Tensor | float = 0.0
        for batch in images.batches():
            indices = batch.indices.to(self.fabric.device)
            normalized = model.normalize(batch.images.to(self.fabric.device))
            total, square = total + normalized.double().sum(0), square + normalized.double().square().sum(0)
            count += len(indices)
            if not getattr(host, "reconstructs_pixels", False):
                continue
            patches, times = pixels(normalized, model.patch_size), torch.zeros((), device=indices.device)
            of_batch: dict[str, Tensor] = {}
            for mask in fixed_masks(indices, model.grid, self.masked, self.draws, SEED, self.run.masking.unit):
                times = times + mask
                losses = trivial_losses(
                    patches,
                    mask,
                    host.reconstruction_loss,
                    channels=normalized.shape[1],
                    grid=model.grid,
                    normalized=bool(getattr(host, "normalize_pixels", False)),
                )
                for name, loss in losses.items():
                    of_batch[name] = of_batch.get(name, 0.0) + torch.where(mask, loss, 0.0)
            for name, loss in of_batch.items():
                sums[name] = sums.get(name, 0.0) + (loss / times).mean(1).sum()
        variance = torch.as_tensor(square / count - (total / count) ** 2).clamp(min=0.0)
        self._constants = {f"check_{name}": float(value / count) for name, value in sums.items()}
        self._constants["check_variation"] = float(variance.mean().sqrt())
        return self._constants

    def _features(self, model: HPM, images: ImageSet) -> Features:
        """Extract the mean patch tokens of whole images."""
        return extract(model, images.batches(), device=self.fabric.device, autocast=autocast_dtype(self.fabric))

    def _neighbors(self, features: Tensor, step: int) -> dict[str, float]:
        """Compare the nearest neighbors with those of the previous check and of the first, and remember them."""
        k = min(NEIGHBORS, (len(features) - 1) // 3)
        if k < 1:
            return {}
        path = self.folder / NEIGHBOR_FILE
        try:
            stored = load_file(path) if path.is_file() else {}
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read and begins anew: %s", path, error)
            stored = {}
        stored = {name: value for name, value in stored.items() if int(name) < step}
        neighbors = nearest_neighbors(features, k)
        row = {}
        for name, other in (("check_same_neighbors", max(stored, default="")), ("check_start_neighbors", f"{0:08d}")):
            if other in stored and stored[other].shape == neighbors.shape:
                row[name] = shared_neighbors(neighbors, stored[other])
        with optional_file(path), atomic_path(path) as partial:
            save_tensors({**stored, f"{step:08d}": neighbors}, partial, {})
        return row

    def _accuracy(self, model: HPM, labeled: LabeledSets, queries: Features, *, linear: bool) -> dict[str, float]:
        """Classify frozen features by their neighbors, and by a linear layer."""
        neighbors, device = self._features(model, labeled.neighbors), self.fabric.device
        if labeled.mapping is not None:
            queries = queries._replace(labels=labeled.mapping[queries.labels])
        pairs = _halves(neighbors, queries) if labeled.in_halves else [(neighbors, queries)]
        counts = [len(tested.labels) for _, tested in pairs]
        labels = torch.cat([tested.labels for _, tested in pairs])
        found = [knn_accuracy(*pair, classes=labeled.classes, ks=(DINO_K,), device=device).top1 for pair in pairs]
        row = {"check_knn_top1": float(np.average(found, weights=counts)), "check_queries": float(len(labels))}
        row["check_chance"] = float(labels.bincount().max()) / len(labels)
        if linear:
            found = []
            for pair in pairs:
                generator = torch.Generator().manual_seed(0)
                found.append(linear_probe(*pair, classes=labeled.classes, generator=generator, device=device).top1)
            row["check_linear_top1"] = float(np.average(found, weights=counts))
        return row


def _halves(first: Features, second: Features) -> list[tuple[Features, Features]]:
    """Split images into two halves, every other image each, and pair them both ways: to learn from, to be tested."""
    features, labels, indices = (
        torch.cat([getattr(part, name) for part in (first, second)]) for name in ("features", "labels", "indices")
    )
    halves = [Features(features[k::2], labels[k::2], [], indices[k::2]) for k in (0, 1)]
    return [(halves[0], halves[1]), (halves[1], halves[0])]


def correlations(losses: Losses, *, remembered: bool) -> dict[str, float]:
    """Rank the patches of each image by predicted and by true loss, and return mean correlations over images.

    ``check_masked_correlation`` is that of the student's predictions of masked patches, ``check_map_correlation`` that
    of the map which is mined by: the teacher's of whole images or, if it is ``remembered``, the student's of masked
    patches. ``check_map_error`` is the standard error of the latter. An image whose map is constant has none.
    """
    row = {}
    if losses.masked is not None:
        row["check_masked_correlation"] = float(_correlation(losses.masked, losses.true_loss).nanmean())
    mined_by = losses.masked if remembered else losses.whole
    if mined_by is not None:
        of_images = _correlation(mined_by, losses.true_loss)
        of_images = of_images[~of_images.isnan()]
        row["check_map_correlation"] = float(of_images.mean())
        row["check_map_error"] = float(of_images.std()) / math.sqrt(max(1, len(of_images)))
    return row


def _correlation(predicted: Tensor, true: Tensor) -> Tensor:
    """Rank correlation of each image, NaN where either map is constant: ``[n]``."""
    constant = (predicted.amax(1) == predicted.amin(1)) | (true.amax(1) == true.amin(1))
    return rank_correlation(predicted, true).masked_fill(constant, math.nan)


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    present = [part.float().cpu() for part in parts if part is not None]
    return torch.cat(present) if present else None
