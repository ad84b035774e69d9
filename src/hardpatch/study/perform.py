"""Perform one run of a study: train it, measure it, write its result."""

import json
import time
from collections.abc import Callable
from typing import Any

from hardpatch import __version__
from hardpatch.configuration import config
from hardpatch.errors import TrainingError, UserError
from hardpatch.files import write_text_atomically
from hardpatch.study.plan import Study, Task
from hardpatch.study.rows import METRICS, Measure
from hardpatch.study.trainings import Stopped, classifier, detection, half, pretraining, segmentation, tokenizer
from hardpatch.study.trainings import linear_probe as train_on_crops
from hardpatch.train.device import use_device
from hardpatch.train.progress import Progress

__all__ = ["Stopped", "missing_measures", "perform"]


def read_result(task: Task) -> dict[str, Any]:
    """Return the content of a run's ``measurements.json``; empty if there is none."""
    return json.loads(task.result.read_text(encoding="utf-8")) if task.result.is_file() else {}


def missing_measures(task: Task) -> tuple[Measure, ...] | None:
    """Return the measurements that a run lacks; None if its training has no result yet."""
    result = read_result(task)
    if not result:
        return None
    return tuple(measure for measure in task.measures if measure not in result["details"])


def perform(study: Study, task: Task, progress: Progress) -> None:
    """Train a run from its newest checkpoint if there is one, and make the measurements that it lacks.

    ``measurements.json`` is rewritten after each. A measurement that fails does not keep the others from being made.

    Raises:
        Stopped: on a signal, once everything that is needed to resume is saved.
        UserError, TrainingError: as the training and the measurements do.
    """
    missing = missing_measures(task)
    result = read_result(task)
    if missing is None:
        start = time.monotonic()
        _train(study, task, progress)
        result = {
            "run": task.run_name,
            "scale": study.scale,
            "seed": task.seed,
            "metrics": {},
            "details": {},
            "seconds": {"train": time.monotonic() - start},
            "train": study.train,
            "val": study.val,
            "hardpatch": __version__,
            "config": config.to_dict(task.run),
        }
        _write(task, result)
        missing = task.measures
    failures = []
    for measure in missing:
        start = time.monotonic()
        try:
            values, details = _MEASURES[measure](study, task, progress)
        except (UserError, TrainingError) as error:
            failures.append(f"{measure}: {error}")
            continue
        result["metrics"] |= values
        result["details"][measure] = details
        result["seconds"][measure] = time.monotonic() - start
        _write(task, result)
    if failures:
        raise UserError("; ".join(failures))


def _write(task: Task, result: dict[str, Any]) -> None:
    write_text_atomically(task.result, json.dumps(result, indent=2) + "\n")


def _train(study: Study, task: Task, progress: Progress) -> None:
    """Train what all measurements of a run need; runs from scratch and Table D's train while they are measured."""
    task.folder.mkdir(parents=True, exist_ok=True)
    if task.kind == "tokenizer":
        tokenizer(study, task, progress)
    elif task.kind == "supervised_teacher":
        classifier(study, task, progress, random=True)
    elif task.kind == "pretrain":
        pretraining(study, task, progress)


Measured = tuple[dict[str, float], dict[str, Any]]
"""Values by key of :data:`METRICS` (those of the larger encoder have the keys of the other), and further details."""


def _knn(study: Study, task: Task, progress: Progress) -> Measured:
    from hardpatch.measure.knn import knn_accuracy

    features = _features(study, task)
    result = knn_accuracy(
        features.train, features.val, classes=len(features.classes), device=use_device(task.run.train.device)
    ).to_dict()
    return {"knn": result["top1"]}, result


def _linear(study: Study, task: Task, progress: Progress) -> Measured:
    import torch

    from hardpatch.measure.linear import linear_probe
    from hardpatch.study.scales import SCALES

    if SCALES[study.scale].linear == "paper":
        result = train_on_crops(study, task, progress)
        return {"linear": result["top1"]}, result
    features = _features(study, task)
    result = linear_probe(
        features.train,
        features.val,
        classes=len(features.classes),
        generator=torch.Generator().manual_seed(task.run.seed),
        device=use_device(task.run.train.device),
    ).to_dict()
    return {"linear": result["top1"]}, result


def _features(study: Study, task: Task) -> Any:
    """Return the student's frozen features, which are computed once and kept in the run's folder."""
    from hardpatch.interchange.load import load
    from hardpatch.measure.labels import labeled_features

    device, data = use_device(task.run.train.device), task.run.data
    return labeled_features(
        load(task.folder, device=device),
        study.train,
        study.val,
        device=device,
        workers=data.workers,
        max_bad_fraction=data.max_bad_fraction,
        cache=task.folder / "features",
        columns=study.columns,
    )


def _finetune(study: Study, task: Task, progress: Progress) -> Measured:
    result = classifier(study, task, progress, random=task.kind == "scratch")
    return {"finetune": result["top1"]}, result


def _detect(study: Study, task: Task, progress: Progress) -> Measured:
    result = detection(study, task, progress)
    aps = {f"{kind}_ap": result[kind]["AP"] for kind in ("box", "mask") if kind in result}
    return {name: ap for name, ap in aps.items() if ap is not None}, result


def _segment(study: Study, task: Task, progress: Progress) -> Measured:
    result = segmentation(study, task, progress)
    return {"miou": result["miou"]}, result


def _segment_160k(study: Study, task: Task, progress: Progress) -> Measured:
    result = segmentation(study, task, progress, twice_as_long=True)
    return {"miou_160k": result["miou"]}, result


def _supervised(study: Study, task: Task, progress: Progress) -> Measured:
    accuracies = half(study, task, progress)
    return accuracies, {"accuracies": accuracies}


def _speedup(study: Study, task: Task, progress: Progress) -> Measured:
    from hardpatch.study.speed import speedup

    result = speedup(study, task)
    return {"speedup": result["speedup"]}, result


_MEASURES: dict[Measure, Callable[[Study, Task, Progress], Measured]] = {
    "knn": _knn,
    "linear": _linear,
    "finetune": _finetune,
    "detect": _detect,
    "segment": _segment,
    "segment_160k": _segment_160k,
    "supervised": _supervised,
    "speedup": _speedup,
}
assert set(_MEASURES) == {metric.measure for metric in METRICS.values()}
