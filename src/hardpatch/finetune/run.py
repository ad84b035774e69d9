"""Fine-tuning: a pre-trained encoder and a linear layer trained together under labels (the paper's Table S2)."""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from hardpatch.curves import training_curves
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.finetune import settings
from hardpatch.finetune.measure import Evaluation, confusion_figure, report
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import FinetuneRun
from hardpatch.finetune.trainer import KIND, Finetuner
from hardpatch.interchange.backbone import build_encoder, encoder_settings, load_backbone
from hardpatch.interchange.load import weights_file
from hardpatch.measure.features import align_labels
from hardpatch.train import checkpoint, run_folder
from hardpatch.train.device import start_fabric
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Progress
from hardpatch.train.settings import to_dict, to_yaml
from hardpatch.train.signals import interruptions

log = logging.getLogger("hardpatch")

README = """# A network fine-tuned with hardpatch

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | a JSON object a line: loss, learning rate, sometimes validation loss, top-1 and top-5 |
| `accuracy.json` | the result after the last epoch: top-1, top-5, accuracy of each class, the most frequent mistakes |
| `tensorboard/` | the metrics for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights, names of the classes; `training.safetensors`: optimizer |
| `pictures/` | `curves.png`; `confusion.png`: which classes are taken for which |

If it was interrupted, go on with

    hardpatch finetune --resume --out {folder}

In Python, `hardpatch.finetune.run.load_classifier("{folder}")` gives the network.
"""


@dataclass(frozen=True)
class Result:
    """How a call of :func:`finetune` ended. Accuracies are shares in [0, 1], NaN where the run was interrupted."""

    top1: float
    """after the last epoch: the result"""
    top5: float
    best_top1: float
    """of all measurements. They were made on the images that it is told of, so it flatters"""
    best_epoch: float
    checkpoint: Path
    step: int
    """optimizer steps done"""
    total: int
    signal: int = 0
    """what interrupted it, 0 if nothing did"""

    @property
    def finished(self) -> bool:
        """False where the run was interrupted."""
        return self.step == self.total


class LoadedClassifier(NamedTuple):
    """A fine-tuned network and what its scores mean."""

    model: Classifier
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) it was trained at, pixels"""


class _Silent:
    """A progress that shows nothing."""

    def start(self, step: int, total: int, batch_size: int) -> None: ...
    def advance(self) -> None: ...
    def metrics(self, row: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


def finetune(
    run: FinetuneRun,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    prepare: Callable[[], None] = lambda: None,
) -> Result:
    """Train until the end, or until SIGINT or SIGTERM.

    Args:
        run: the settings; see :func:`~hardpatch.finetune.settings.configure`.
        folder: of the run; new, or with ``resume`` one that was begun with these settings.
        resume: go on from the newest checkpoint in ``folder``.
        progress: is told of steps and metrics.
        arguments: the command line that this came from, for the folder's README.
        prepare: called when the folder has been made.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written.
        TrainingError: if the loss becomes NaN or infinite.
    """
    if resume:
        check_resume(folder, run)
    else:
        run_folder.check_new(folder)
    sources = _open("--train", run.train), _open("--val", run.val)
    classes, number = align_labels(*sources)
    if len(classes) < 2:
        raise UserError(f"--train: expected two classes or more, got one, {classes[0]!r}")
    fabric = start_fabric(run.device, run.precision, "--")
    newest = checkpoint.newest(folder)
    # A run that goes on does not need what it began with, which may have been trained further since.
    model = _initial(run, len(classes)) if newest is None else load_classifier(newest).model
    trainer = Finetuner(run, folder, sources[0], sources[1], classes, number, model, fabric)
    if newest is not None:
        trainer.restore(newest)
    run_folder.write_files(
        folder, to_yaml(to_dict(run)), arguments or ["finetune", run.run, "--out", str(folder)], README
    )
    prepare()
    if len(sources[0]) < run.batch_size:
        log.warning("%d images are less than a batch of %d; see --preset", len(sources[0]), run.batch_size)
    with interruptions() as signals:
        found = trainer.fit(progress or _Silent(), signals)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if trainer.step < trainer.total:
        return Result(math.nan, math.nan, math.nan, math.nan, saved, trainer.step, trainer.total, signals[0])
    return _finish(trainer, found or trainer.evaluate(), saved)  # a finished run that is called again is measured again


def check_resume(folder: Path, run: FinetuneRun) -> None:
    """Refuse to go on with other settings than a run began with.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    before, now = to_dict(read_settings(folder)), to_dict(run)
    changed = [name for name in now if before[name] != now[name] and name not in settings.FREE_TO_CHANGE]
    run_folder.refuse_changes(folder, {name: (before[name], now[name]) for name in changed})


def read_settings(folder: Path) -> FinetuneRun:
    """The settings that a run folder was made with.

    Raises:
        UserError: if there are none.
    """
    values = run_folder.read_values(folder)
    if "run" not in values:
        raise UserError(f"--out: expected a folder of hardpatch finetune, {folder} is one of another verb")
    return settings.build(values)


def _finish(trainer: Finetuner, found: Evaluation, saved: Path) -> Result:
    """Write accuracy.json and the pictures."""
    folder, classes = trainer.folder, trainer.classes
    rows = read_metrics(folder / "metrics.jsonl")
    best = max((row for row in rows if "top1" in row), key=lambda row: row["top1"])
    told = report(found, classes, best["top1"], best["epoch"])
    partial = folder / ".accuracy.json.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "accuracy.json")
    training_curves(rows, folder / "pictures" / "curves.png")
    confusion_figure(found.confusion, classes).savefig(folder / "pictures" / "confusion.png")
    return Result(found.top1, found.top5, best["top1"], best["epoch"], saved, trainer.step, trainer.total)


def load_classifier(path: str | Path) -> LoadedClassifier:
    """A fine-tuned network in eval mode: ``model(model.normalize(uint8 images))`` gives scores ``[B, classes]``.

    Args:
        path: a run folder of :func:`finetune` (its newest checkpoint), one checkpoint's folder, or its
            ``model.safetensors``. Where the run has a moving average of its weights, that is what is loaded.

    Raises:
        UserError: if there is nothing to load, or it is of another kind.
    """
    file = weights_file(path)
    metadata = (checkpoint.read_metadata(file) if file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a network of hardpatch finetune, {file} is of another kind")
    state = load_file(file)
    weights = checkpoint.with_prefix(state, "teacher.") or checkpoint.with_prefix(state, "student.")
    size = (metadata["image_size"][0], metadata["image_size"][1])
    model = Classifier(
        build_encoder(metadata["encoder"]),
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        drop_path=metadata["finetune"]["drop_path"],
    )
    model.load_state_dict(weights)
    return LoadedClassifier(model.eval(), tuple(metadata["classes"]), size)


def _initial(run: FinetuneRun, classes: int) -> Classifier:
    """The network with which a run begins.

    Raises:
        UserError: if the weights cannot be loaded or the image size does not fit.
    """
    encoder, mean, std = load_backbone(run.run, run.weights)
    size = None if run.image_size is None else (run.image_size, run.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        if run.from_scratch:
            shape = encoder_settings(encoder)
            if shape["positions"] == "learned":
                shape["positions"] = "sincos"
            encoder = build_encoder(shape)
        try:
            return Classifier(encoder, classes, mean=mean, std=std, image_size=size, drop_path=run.drop_path)
        except ValueError as error:
            raise UserError(f"--image_size: {error}") from None


def _open(argument: str, path: str) -> Source:
    try:
        return open_source(path)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None
