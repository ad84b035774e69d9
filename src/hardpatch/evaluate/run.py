"""The verbs that measure a run without training it: k-NN, linear probe, difficulty, embeddings."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from hardpatch.choices import WeightsName
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.sources import open_images, open_source
from hardpatch.data.summary import summarize
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.evaluate.embeddings import write_embeddings
from hardpatch.interchange.load import load, load_pair, load_target, training_masks
from hardpatch.measure import linear as linear_probes
from hardpatch.measure import score as scoring
from hardpatch.measure.difficulty import Predict
from hardpatch.measure.distributed import process_group, process_rank
from hardpatch.measure.features import Pool, ProgressCallback
from hardpatch.measure.knn import KnnResult, knn_accuracy
from hardpatch.measure.labels import LabeledFeatures, labeled_features
from hardpatch.measure.linear import LinearResult
from hardpatch.measure.score import ScoreResult
from hardpatch.train.device import use_device
from hardpatch.train.result import head

log = logging.getLogger("hardpatch")

Result = TypeVar("Result", KnnResult, LinearResult)
Cache = Path | Literal["auto"] | None


@dataclass(frozen=True)
class FrozenResult(Generic[Result]):
    """Accuracy of frozen features; without a result in all processes of a ``torchrun`` but the first."""

    result: Result | None
    random: Result | None = None
    """the same for the random initialization, where it was asked for"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """all of it as plain values, for JSON"""


@dataclass(frozen=True)
class EmbeddingsResult:
    """Result of :func:`embed`."""

    path: Path
    images: int
    """vectors that were written"""
    width: int
    """numbers of a vector"""
    left_out: int
    """images that could not be decoded"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """all of it as plain values, for JSON"""


def knn(
    run: str | Path,
    train: str,
    val: str,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    **options: Any,
) -> FrozenResult[KnnResult]:
    """Measure k-NN accuracy with DINO's weighted vote: ``hardpatch knn``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint.
        train: labeled images that vote.
        val: labeled images to classify.
        ks: numbers of neighbors.
        temperature: of the votes.
        options: see :func:`frozen_accuracy`.

    Raises:
        UserError: for weights or data that cannot be used.
    """

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
    train: str,
    val: str,
    *,
    base_lrs: Sequence[float] = linear_probes.BASE_LRS,
    optimizer: linear_probes.Optimizer = "sgd",
    epochs: int = 90,
    probe_batch_size: int = 16384,
    seed: int = 0,
    **options: Any,
) -> FrozenResult[LinearResult]:
    """Train linear probes on frozen features, all learning rates at once, the best reported: ``hardpatch linear``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint.
        train: labeled images to learn from.
        val: labeled images to evaluate on.
        base_lrs: learning rates for a batch of 256.
        optimizer: ``sgd`` as MoCo v3, ``lars`` as MAE.
        epochs: passes over the features.
        probe_batch_size: features of a step.
        seed: of weights and order.
        options: see :func:`frozen_accuracy`.

    Raises:
        UserError: for weights or data that cannot be used.
    """

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
    train: str,
    val: str,
    measure: Callable[[LabeledFeatures, torch.device], Result],
    *,
    weights: WeightsName = "student",
    random_baseline: bool = False,
    pool: Pool = "mean",
    cache: Cache = "auto",
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 0.1,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> FrozenResult[Result]:
    """Measure frozen features of two labeled sets, over all processes of a ``torchrun``.

    Args:
        verb: name of the measurement.
        run: run folder, ``.safetensors`` file or reference checkpoint.
        train: labeled images to learn from.
        val: labeled images to evaluate on.
        measure: the measurement.
        weights: of the run.
        random_baseline: measure the random initialization, too.
        pool: mean of the patch tokens, or the class token.
        cache: folder for the features; ``auto`` is RUN/features of a run folder, None computes them anew.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: files that cannot be decoded are named and left out, up to this share of a set.
        device: where to compute.
        progress: called after each batch with (images done, images).
    """
    started = time.monotonic()
    folder: Path | None = None
    if cache == "auto":
        folder = Path(run) / "features" if Path(run).is_dir() else None
    else:
        folder = cache
    results: dict[str, Result] = {}
    features: LabeledFeatures | None = None
    names: list[WeightsName] = [weights, "random"] if random_baseline else [weights]
    with process_group(use_device(device)) as used_device:
        for name in names:
            features = labeled_features(
                load(run, name, device=used_device),
                train,
                val,
                device=used_device,
                pool=pool,
                batch_size=batch_size,
                workers=workers,
                max_bad_fraction=max_bad_fraction,
                cache=folder,
                progress=progress,
            )
            if process_rank().rank == 0:  # the others have given their features and have nothing more to do
                results[name] = measure(features, used_device)
    if not results:
        return FrozenResult(None)
    assert features is not None
    for argument, path in (("--train", train), ("--val", val)):
        log.info("%s: %s", argument, summarize(open_source(path)))
    bad = [*features.train.bad, *features.val.bad]
    values = head(
        verb,
        run=str(run),
        data={"train": str(train), "val": str(val)},
        images={"train": len(features.train.labels), "val": len(features.val.labels)},
        classes=len(features.classes),
        left_out={"train, undecodable": len(features.train.bad), "val, undecodable": len(features.val.bad)},
        seconds=time.monotonic() - started,
    )
    values |= {"weights": weights, "pool": pool, "skipped": bad, **results[weights].to_dict()}
    baseline = results.get("random") if random_baseline else None
    values["random"] = None if baseline is None else baseline.to_dict()
    return FrozenResult(results[weights], baseline, values)


def score(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    masks: str | Path | None = None,
    mask_ratio: float | None = None,
    draws: int = 10,
    predict: Predict | None = None,
    pictures: int = 32,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> ScoreResult:
    """Predict the difficulty of images and measure their true loss, as pictures and numbers: ``hardpatch score``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint, with a loss predictor.
        images: files, folders, Parquet files, ``demo:test``.
        out: folder for the pictures and ``scores.parquet``.
        masks: folder of object masks of the same file stems, for the ROC area.
        mask_ratio: share of masked patches; the run's by default.
        draws: random masks over which the true loss is averaged.
        predict: which prediction to use as the difficulty map, ``whole`` or ``masked``; that which the run mined by by
            default.
        pictures: images that get a picture; all get numbers.
        seed: of the masks.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; they are named and left out.
        device: where to compute.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: for weights or images that cannot be used.
    """
    used_device = use_device(device)
    student, teacher = load_pair(run, device=used_device)
    source = open_images([images] if isinstance(images, str) else list(images))
    masking = training_masks(run)
    log.info("IMAGES: %s", summarize(source))
    result = scoring.score(
        student,
        teacher,
        source,
        out=Path(out),
        masks=None if masks is None else Path(masks),
        target=load_target(run, teacher, device=used_device),
        mask_ratio=masking.mask_ratio if mask_ratio is None else mask_ratio,
        draws=draws,
        predict=predict or masking.predict,
        seed=seed,
        pictures=pictures,
        batch_size=batch_size,
        workers=resolve_workers(workers),
        device=used_device,
        progress=progress,
    )
    BadFiles(len(source), max_bad_fraction, "--max_bad_fraction").update(result.bad)
    return result


def embed(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    weights: WeightsName = "student",
    pool: Pool = "mean",
    normalize: bool = False,
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> EmbeddingsResult:
    """Write one vector for each image into a Parquet file with the columns path and embedding: ``hardpatch embed``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint.
        images: files, folders, Parquet files, ``demo:test``.
        out: the Parquet file; must not exist.
        weights: of the run.
        pool: mean of the patch tokens, or the class token.
        normalize: scale every vector to length 1, for cosine search.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; they are named and left out.
        device: where to compute.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: for weights or images that cannot be used, or an ``out`` that exists.
    """
    started, path = time.monotonic(), Path(out)
    if path.exists():
        raise UserError(f"--out: expected a file that does not exist yet, got {path}; choose another name")
    used_device = use_device(device)
    model = load(run, weights, device=used_device)
    source = open_images([images] if isinstance(images, str) else list(images))
    log.info("IMAGES: %s", summarize(source))
    written, bad = write_embeddings(
        model,
        source,
        path,
        device=used_device,
        pool=pool,
        normalize=normalize,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    BadFiles(len(source), max_bad_fraction, "--max_bad_fraction").update(bad)
    width = model.host.encoder.width
    values = head(
        "embed",
        run=str(run),
        data={"images": images if isinstance(images, str) else " ".join(images)},
        images={"images": written},
        classes=None,
        left_out={"not images": len(source.skipped), "undecodable": len(bad)},
        seconds=time.monotonic() - started,
    )
    values |= {"weights": weights, "pool": pool, "out": str(path), "width": width}
    return EmbeddingsResult(path, written, width, len(bad), values)
