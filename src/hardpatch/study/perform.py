"""Perform one run of a study: train it, measure it, write its result."""

import json
import time
from typing import TYPE_CHECKING, Any

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.files import write_text_atomically
from hardpatch.pretrain import config
from hardpatch.study.plan import PREDICTOR, RESULT, TOKENIZER, Study, Task, finetune_settings, tokenizer_settings
from hardpatch.study.rows import METRICS
from hardpatch.train.device import use_device
from hardpatch.train.progress import Progress
from hardpatch.train.settings import changed, to_dict

if TYPE_CHECKING:
    import torch


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """SIGINT or SIGTERM asked the study to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def perform(study: Study, task: Task, progress: Progress) -> None:
    """Train and measure one run, from its newest checkpoint if there is one, and write its ``result.json``.

    Raises:
        Stopped: on a signal, once everything that is needed to resume is saved.
        UserError, TrainingError: as the training and the measurements do.
    """
    start = time.monotonic()
    details = _train_and_measure(study, task, progress)
    result = {
        "table": study.table.name,
        "row": task.row.name,
        "scale": study.scale,
        "seed": task.seed,
        "metrics": {key: details[key]["top1"] for key in METRICS if key in details},
        "details": details,
        "train": study.train,
        "val": study.val,
        "seconds": time.monotonic() - start,
        "hardpatch": __version__,
        "config": config.to_dict(task.run),
    }
    write_text_atomically(task.result, json.dumps(result, indent=2) + "\n")


def _train_and_measure(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Return the measurements, by key of :data:`METRICS`."""
    if task.row == TOKENIZER:
        _train_tokenizer(study, task, progress)
        return {}
    if task.row.keep is not None:
        return _train_supervised(study, task, progress)
    _pretrain(study, task, progress)
    if task.row == PREDICTOR:
        return {}
    return {**_probe(study, task), **_finetune(study, task, progress)}


def _pretrain(study: Study, task: Task, progress: Progress) -> None:
    """Pre-train as ``hardpatch pretrain`` does, without its pictures."""
    from hardpatch.pretrain.run import train

    result = train(
        task.run,
        task.folder,
        resume=(task.folder / "config.yaml").is_file(),
        progress=progress,
        arguments=["study", *study.arguments],
        pictures=False,
    )
    if not result.finished:
        raise Stopped(result.signal)


def _probe(study: Study, task: Task) -> dict[str, Any]:
    """Measure k-NN and a linear probe on the student's frozen features, which are computed once."""
    import torch

    from hardpatch.interchange.load import load
    from hardpatch.measure.knn import knn_accuracy
    from hardpatch.measure.labels import labeled_features
    from hardpatch.measure.linear import linear_probe

    device = _device(task)
    data = task.run.data
    features = labeled_features(
        load(task.folder, device=device),
        study.train,
        study.val,
        device=device,
        workers=data.workers,
        max_bad_fraction=data.max_bad_fraction,
    )
    classes = len(features.classes)
    knn = knn_accuracy(features.train, features.val, classes=classes, device=device)
    generator = torch.Generator().manual_seed(task.run.seed)
    linear = linear_probe(features.train, features.val, classes=classes, generator=generator, device=device)
    return {"knn": knn.to_dict(), "linear": linear.to_dict()}


def _finetune(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Fine-tune as ``hardpatch finetune`` does with the scale's preset; resumes."""
    from hardpatch.finetune.run import finetune

    folder = task.folder / "finetune"
    result = finetune(
        str(task.folder),
        study.train,
        study.val,
        folder,
        resume=(folder / "config.yaml").is_file(),
        progress=progress,
        arguments=["study", *study.arguments],
        **to_dict(finetune_settings(study, task.run)),
    )
    if not result.finished:
        raise Stopped(result.signal)
    return {"finetune": {"top1": result.top1, "top5": result.top5, "best_top1": result.best_top1}}


def _train_tokenizer(study: Study, task: Task, progress: Progress) -> None:
    """Train as ``hardpatch tokenizer`` does; resumes."""
    from hardpatch.pretrain.tokenizer_run import train_tokenizer

    task.folder.mkdir(parents=True, exist_ok=True)
    out = study.trained_tokenizer
    result = train_tokenizer(
        study.data,
        out,
        resume=(out / "config.yaml").is_file(),
        progress=progress,
        arguments=["study", *study.arguments],
        **to_dict(tokenizer_settings(study, task)),
    )
    if not result.finished:
        raise Stopped(result.signal)


def _train_supervised(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Train the supervised ViT of Table D; resumes."""
    from hardpatch.finetune.settings import SCRATCH
    from hardpatch.interchange.load import load
    from hardpatch.study.table_d import train_supervised

    assert task.row.keep is not None
    predictor = None
    if task.row.keep in ("hardest", "easiest"):
        pretrained = study.out / PREDICTOR.key / f"seed_{task.seed}"
        if not (pretrained / RESULT).is_file():
            raise UserError(f"the pre-training run that ranks the patches is not done: {pretrained}")
        predictor = load(pretrained, "teacher")
    task.folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(task.folder / "config.yaml", f"# {study.command}\n{config.to_yaml(task.run)}")
    settings = changed(finetune_settings(study, task.run), SCRATCH)
    result = train_supervised(
        task.run, settings, task.folder, study.train, study.val, task.row.keep, predictor, progress
    )
    if result.signal:
        raise Stopped(result.signal)
    return {key: {"top1": accuracy} for key, accuracy in result.accuracies.items()}


def _device(task: Task) -> "torch.device":
    return use_device(task.run.train.device)
