"""Perform one run of a study: train it, measure it, write its result."""

import json
import time
from typing import TYPE_CHECKING, Any

from hardpatch import __version__
from hardpatch.data.loader import resolve_workers
from hardpatch.errors import UserError
from hardpatch.pretrain import config
from hardpatch.study.plan import PREDICTOR, RESULT, TOKENIZER, Study, Task, finetune_run, tokenizer_run
from hardpatch.study.rows import METRICS
from hardpatch.study.table import write_text
from hardpatch.train.device import use_device
from hardpatch.train.progress import Progress

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
    write_text(task.result, json.dumps(result, indent=2) + "\n")


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
    from hardpatch.pretrain import folder as run_folder
    from hardpatch.pretrain.run import pretrain
    from hardpatch.train.progress import show_log

    def prepare() -> None:
        run_folder.write(task.folder, task.run, ["study", *study.arguments])
        show_log(file=task.folder / "log.txt")

    outcome = pretrain(task.run, task.folder, progress, prepare)
    if not outcome.finished:
        raise Stopped(outcome.signal)


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

    train, folder = task.run.train, task.folder / "finetune"
    run = finetune_run(study, str(task.folder), task.run.seed, train.device, task.run.data.workers)
    resume = (folder / "config.yaml").is_file()
    result = finetune(run, folder, resume=resume, progress=progress, arguments=["study", *study.arguments])
    if not result.finished:
        raise Stopped(result.signal)
    return {"finetune": {"top1": result.top1, "top5": result.top5, "best_top1": result.best_top1}}


def _train_tokenizer(study: Study, task: Task, progress: Progress) -> None:
    """Train as ``hardpatch tokenizer`` does; it has no checkpoints, so that a stop costs all of it."""
    from hardpatch.data.sources import open_source
    from hardpatch.pretrain import tokenizer as training

    task.folder.mkdir(parents=True, exist_ok=True)
    out = study.trained_tokenizer
    if out.is_file():
        return
    source, run, device = open_source(study.data), tokenizer_run(study, task), _device(task)
    workers = resolve_workers(task.run.data.workers)
    for path in training.companions(out):  # of a run that was killed while it wrote them
        path.unlink(missing_ok=True)
    model, rows = training.train_tokenizer(source, run, device=device, workers=workers, progress=progress)
    quality = training.measure(model, source, run.image_size, device=device, batch_size=run.batch_size, workers=workers)
    training.write(out, model, run, quality, rows, training.picture(model, source, run.image_size, device=device))


def _train_supervised(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Train the supervised ViT of Table D."""
    from hardpatch.interchange.load import load
    from hardpatch.study.table_d import train_supervised

    assert task.row.keep is not None
    device = _device(task)
    predictor = None
    if task.row.keep in ("hardest", "easiest"):
        pretrained = study.out / PREDICTOR.key / f"seed_{task.seed}"
        if not (pretrained / RESULT).is_file():
            raise UserError(f"the pre-training run that ranks the patches is not done: {pretrained}")
        predictor = load(pretrained, "teacher", device=device)
    task.folder.mkdir(parents=True, exist_ok=True)
    write_text(task.folder / "config.yaml", f"# {study.command}\n{config.to_yaml(task.run)}")
    accuracies = train_supervised(task.run, task.folder, study.val, task.row.keep, predictor, progress, device)
    return {key: {"top1": accuracy} for key, accuracy in accuracies.items()}


def _device(task: Task) -> "torch.device":
    return use_device(task.run.train.device)
