"""Accuracy of a run's frozen features: k-NN and linear probe."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from hardpatch.choices import Architecture, WeightsName
from hardpatch.data.columns import Columns
from hardpatch.data.left_out import counts
from hardpatch.data.sources import Paths
from hardpatch.interchange.load import load, read_newest, training_step
from hardpatch.measure import linear as linear_probes
from hardpatch.measure.features import Pool
from hardpatch.measure.knn import KnnResult, knn_accuracy
from hardpatch.measure.labels import LabeledFeatures, labeled_features
from hardpatch.measure.linear import LinearResult
from hardpatch.methods.hpm import HPM
from hardpatch.paths import user_path
from hardpatch.processes import is_first
from hardpatch.ranges import check_options
from hardpatch.train.device import joined_device
from hardpatch.train.result import head

Result = TypeVar("Result", KnnResult, LinearResult)
Cache = Path | Literal["auto"] | None


@dataclass(frozen=True)
class FrozenResult(Generic[Result]):
    """Accuracy of frozen features; in a ``torchrun`` only the first process has a result."""

    result: Result | None
    random: Result | None = None
    """the same for the random initialization; None if it was not requested"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """the whole result as plain values, for JSON"""

    @property
    def weights(self) -> str:
        """Name of the weights that were measured, in words."""
        taken = str(self.values.get("weights", "auto"))
        return taken if taken != "auto" else "student" if "step" in self.values else "weights"

    @property
    def unfinished(self) -> str:
        """The step of a run that has not ended, in words; empty otherwise."""
        step, steps = self.values.get("step", 0), self.values.get("steps", 0)
        return f"step {step} of {steps}, still running or interrupted" if step < steps else ""


def knn(
    run: str | Path,
    train: Paths,
    val: Paths,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    **options: Any,
) -> FrozenResult[KnnResult]:
    """Measure k-NN accuracy with DINO's weighted vote: ``hardpatch knn``.

    Args:
        run: run folder, or anything else that :func:`hardpatch.load` reads.
        train: labeled images, the neighbors.
        val: labeled images to classify.
        ks: numbers of neighbors.
        temperature: of the softmax that weights the votes.
        options: see :func:`frozen_accuracy`.

    Raises:
        UserError: for weights or data that cannot be used.
    """
    check_options(k=list(ks), temperature=temperature, **_ranged(options))

    def measure(features: LabeledFeatures, device: torch.device) -> KnnResult:
        return knn_accuracy(
            features.train,
            features.val,
            classes=len(features.classes),
            ks=ks,
            temperature=temperature,
            device=device,
        )

    return frozen_accuracy("knn", run, train, val, measure, **options)


def linear(
    run: str | Path,
    train: Paths,
    val: Paths,
    *,
    base_lrs: Sequence[float] = linear_probes.BASE_LRS,
    optimizer: linear_probes.Optimizer = "sgd",
    epochs: int = 90,
    probe_batch_size: int = 16384,
    seed: int = 0,
    **options: Any,
) -> FrozenResult[LinearResult]:
    """Train linear probes on frozen features, one for each learning rate, and report the best: ``hardpatch linear``.

    Args:
        run: run folder, or anything else that :func:`hardpatch.load` reads.
        train: labeled images to learn from.
        val: labeled images to evaluate on.
        base_lrs: learning rates for a batch of 256.
        optimizer: ``sgd`` as in MoCo v3, ``lars`` as in MAE.
        epochs: passes over the features.
        probe_batch_size: features in each step.
        seed: for initial weights and order.
        options: see :func:`frozen_accuracy`.

    Raises:
        UserError: for weights or data that cannot be used.
    """
    check_options(base_lr=list(base_lrs), epochs=epochs, probe_batch_size=probe_batch_size, seed=seed)
    check_options(**_ranged(options))

    def measure(features: LabeledFeatures, device: torch.device) -> LinearResult:
        return linear_probes.linear_probe(
            features.train,
            features.val,
            classes=len(features.classes),
            generator=torch.Generator().manual_seed(seed),
            base_lrs=base_lrs,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=probe_batch_size,
            device=device,
        )

    return frozen_accuracy("linear", run, train, val, measure, **options)


def frozen_accuracy(
    verb: str,
    run: str | Path,
    train: Paths,
    val: Paths,
    measure: Callable[[LabeledFeatures, torch.device], Result],
    *,
    weights: WeightsName = "auto",
    architecture: Architecture | None = None,
    random_baseline: bool = False,
    pool: Pool = "mean",
    cache: Cache = "auto",
    device: str = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    **options: Any,
) -> FrozenResult[Result]:
    """Measure the accuracy of frozen features on two labeled sets, computed by all processes of a ``torchrun``.

    Args:
        verb: name of the measurement.
        run: run folder, or anything else that :func:`hardpatch.load` reads.
        train: labeled images to learn from.
        val: labeled images to evaluate on.
        measure: computes the result from the features of both sets.
        weights: as of :func:`hardpatch.load`.
        architecture: its further arguments, for weights of other libraries.
        random_baseline: also measure the random initialization.
        pool: mean of the patch tokens, or class token.
        cache: folder for the features; ``auto`` is RUN/features of a run folder, None does not store them.
        device: of the model.
        image_column: column of the images in tables; None finds it.
        label_column: column of the labels, likewise.
        options: batch_size, workers, max_bad_fraction, image_size, blocks and progress of
            :func:`~hardpatch.measure.labels.labeled_features`.
    """
    started, results = time.monotonic(), dict[str, Result]()
    names = list[WeightsName]([weights, "random"] if random_baseline else [weights])
    columns = Columns(image_column, label_column)
    shared = {"pool": pool, "cache": _cache_folder(run, cache), "columns": columns, **options}
    with joined_device(device) as used_device:
        read = partial(_load_models, names=names, device=used_device, architecture=architecture or {})
        models, step = read_newest(run, read)
        for name, model in models.items():
            features = labeled_features(
                model,
                train,
                val,
                device=used_device,
                describe=name == names[0],
                **shared,
            )
            if is_first():  # the other processes only compute features
                results[name] = measure(features, used_device)
    if not results:
        return FrozenResult(None)
    result, random = results[weights], results.get("random") if random_baseline else None
    values = _values(verb, run, (train, val), features, time.monotonic() - started) | step
    values |= {"weights": weights, "pool": pool, **_view(options), **result.to_dict()}
    return FrozenResult(result, random, values | {"random": random and random.to_dict()})


def _view(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return image size and blocks as plain values, where they differ from those of the training."""
    return {name: options[name] for name in ("image_size", "blocks") if options.get(name)}


def _ranged(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the images that have a range."""
    return {
        name: options[name] for name in ("batch_size", "workers", "max_bad_fraction", "image_size") if name in options
    }


def _load_models(
    file: Path, names: Sequence[WeightsName], device: torch.device, architecture: Architecture
) -> tuple[dict[WeightsName, HPM], dict[str, int]]:
    """Load models and step of one file: a run that goes on may write another, and remove this one, meanwhile."""
    step = training_step(file)
    return {name: load(file, name, device=device, **architecture) for name in names}, step


def _cache_folder(run: str | Path, cache: Cache) -> Path | None:
    if cache != "auto":
        return None if cache is None else user_path(cache, "--cache")
    return Path(run) / "features" if Path(run).is_dir() else None


def _values(
    verb: str, run: str | Path, paths: tuple[Paths, Paths], features: LabeledFeatures, seconds: float
) -> dict[str, Any]:
    """Return the head of the result and the names of undecodable images."""
    train, val = features.train, features.val
    values = head(
        verb,
        run=str(run),
        data={"train": paths[0], "val": paths[1]},
        images={"train": len(train.labels), "val": len(val.labels)},
        classes=len(features.classes),
        left_out={
            **counts(features.skipped[0], len(train.bad), "train, "),
            **counts(features.skipped[1], len(val.bad), "val, "),
        },
        seconds=seconds,
    )
    return values | {"skipped": [*train.bad, *val.bad]}
