"""Fine-tuning and linear probing: a linear layer trained on labels, with the encoder (Table S2) or without (S3)."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.columns import Columns
from hardpatch.data.sources import Paths
from hardpatch.finetune.file import initial_classifier, load_classifier
from hardpatch.finetune.finish import FinetuneResult, finish, warnings
from hardpatch.finetune.objective import TargetObjective
from hardpatch.finetune.probe import hold_out_of, start_from_probe
from hardpatch.finetune.scratch import describe
from hardpatch.finetune.sets import open_labeled_set, open_sets, read_as
from hardpatch.finetune.settings import AUTO, PRESETS, PROBES, FinetuneSettings, by_size, check, check_task, of_task
from hardpatch.finetune.trainer import FinetuneJob, finetune_learning_rate
from hardpatch.interchange.finetuned import PROBE
from hardpatch.page.during import RunReport
from hardpatch.processes import is_first, on_first
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric_of
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.freeze import trained_line
from hardpatch.train.launch import launch_of
from hardpatch.train.live import LiveProgress
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.run_folder import claimed, read_values, resume_point
from hardpatch.train.settings import check_loop

log = logging.getLogger("hardpatch")

REQUIRED = {
    "run": "a pre-trained encoder to start from",
    "train": "labeled images to learn from",
}
README = """# A classifier trained with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | one JSON object per line: loss and learning rate, or loss, top-1 and top-5 of an evaluation |
| `result.json` | the result after the last epoch: top-1, top-5, accuracy of each class, the most frequent confusions |
| `tensorboard/` | the metrics for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights, names of the classes; `training.safetensors`: optimizer |
| `report.html` | all of this as a page, without network |
| `pictures/` | `curves.png`; `confusion.png`: the confusion matrix |

If it was interrupted, run this to resume:

    hardpatch VERB --resume --out {folder}

In Python, `hardpatch.load_classifier("{folder}")` loads the network.
"""


def finetune(
    run: str | Path | RunConfig | None = None,
    train: Paths | None = None,
    val: Paths | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    target_columns: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> FinetuneResult:
    """Train a pre-trained encoder and a linear layer on labels: ``hardpatch finetune``.

    Training ends early, with a checkpoint, on SIGINT or SIGTERM.

    Args:
        run: the encoder: run folder, weights file, reference checkpoint or timm's weights. Or settings of a
            pre-training run: its encoder is trained from random weights, in the images that the settings name.
        train: labeled images to learn from: one folder for each class, or a table or archive with labels.
        val: labeled images to evaluate on. Their classes are those of ``train`` by name. None holds a part of ``train``
            out.
        out: folder of the run.
        preset: name in :data:`~hardpatch.finetune.settings.PRESETS`; ``auto`` by default, which fits settings to the
            number of images.
        image_column: column of the images in tables; None finds it.
        label_column: column of the labels, likewise; with several labels an image it holds lists, or text with ``;``
            between them.
        target_columns: columns of 0 and 1 for each class (multilabel) or of numbers (regression).
        resume: continue the run in ``out``; no other argument is needed then.
        progress: shows steps and metrics; silent by default.
        arguments: command line of this call, for the folder's README.
        settings: settings that differ from the preset, see :class:`~hardpatch.finetune.settings.FinetuneSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written; later if too many images
            cannot be decoded.
        TrainingError: if the loss becomes NaN or infinite.
    """
    scratch = run if isinstance(run, RunConfig) else None
    if scratch is not None:
        settings = {name: value for name, value in settings.items() if name != "weights"}
        settings |= {} if resume else {"weights": "random"}  # a resumed run has them
    inputs = {"run": run if scratch is None else describe(scratch), "train": train, "val": val}
    inputs |= {"image_column": image_column, "label_column": label_column, "target_columns": _names(target_columns)}
    settings = settings if resume else of_task(settings)
    presets = PRESETS
    if preset == AUTO or (preset is None and not resume):
        presets = {**PRESETS, AUTO: _auto(inputs, out if resume else None)}
    folder_run = open_run(
        *("finetune", out, inputs, presets, preset, settings),
        resume=resume,
        required=REQUIRED,
        earlier={"probe": False},
        values_of=_values,
    )
    return _launch("finetune", folder_run, progress, list(arguments), scratch)


def _names(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else [columns] if isinstance(columns, str) else list(columns)


def _auto(inputs: Mapping[str, Any], folder: str | Path | None) -> FinetuneSettings:
    """Return the preset ``auto`` for the training set of a new run, or of the run in ``folder``."""
    if folder is not None:
        inputs = read_values(Path(folder)) | {name: value for name, value in inputs.items() if value is not None}
    if inputs.get("train") is None:
        return PRESETS[AUTO]
    # a column of lists or numbers is no column of classes, whose number does not matter here
    images = len(open_labeled_set("train", inputs["train"], Columns(inputs["image_column"])))
    return by_size(images if inputs.get("val") is not None else round(images * (1 - FinetuneSettings.val_share)))


def train_linear_probe(
    run: str | Path | None = None,
    train: Paths | None = None,
    val: Paths | None = None,
    out: str | Path | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    target_columns: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> FinetuneResult:
    """Train a linear layer on the frozen features of random crops: ``hardpatch linear --protocol paper``.

    The settings are those of Table S3 (:data:`~hardpatch.finetune.settings.PROBES`). Unlike
    :func:`hardpatch.measure.linear.linear_probe` it encodes every crop anew, and has one learning rate that is not
    chosen on ``val``. Arguments and errors are those of :func:`finetune`, except that ``run`` must have weights.
    """
    inputs = {"run": run, "train": train, "val": val, "image_column": image_column, "label_column": label_column}
    inputs |= {"target_columns": _names(target_columns)}
    settings = settings if resume else of_task(settings)
    folder_run = open_run(
        "linear", out, inputs, PROBES, None, settings, resume=resume, required=REQUIRED, values_of=_values
    )
    return _launch("linear", folder_run, progress, list(arguments))


def _values(run: FinetuneSettings, images: int, step: int, total: int) -> tuple[float]:
    return (finetune_learning_rate(step, total, run, images),)


def _launch(
    verb: str,
    folder_run: FolderRun[FinetuneSettings],
    progress: Progress | None,
    arguments: list[str],
    scratch: RunConfig | None = None,
) -> FinetuneResult:
    check_loop(folder_run.settings)
    check_task(folder_run.settings)
    with claimed(folder_run.folder, resume=folder_run.resume):
        return launch_of(
            folder_run.settings, _train, verb, folder_run, arguments, scratch, progress=progress or Silent()
        )


def _train(
    verb: str,
    folder_run: FolderRun[FinetuneSettings],
    arguments: list[str],
    scratch: RunConfig | None,
    *,
    progress: Progress,
) -> FinetuneResult:
    started = time.monotonic()
    folder, settings, inputs = folder_run.folder, folder_run.settings, folder_run.inputs
    sets = open_sets(inputs, settings)
    check(settings, len(sets.train))
    fabric = start_fabric_of(settings)
    newest = resume_point(folder)
    # A resumed run does not read the encoder that it started from, which may be gone or trained further.
    if newest is not None:
        model = load_classifier(newest).model
    else:
        model = initial_classifier(settings, scratch or inputs["run"], sets.train, len(sets.classes), sets.units)
    sets = read_as(sets, model.reading)
    learned_from, held_out = hold_out_of(sets.train, settings)
    targets = None if sets.tables is None else TargetObjective(settings, *sets.tables, sets.units, fabric.device)
    sources = learned_from, sets.val, sets.classes, sets.val_labels
    job = FinetuneJob(settings, folder, *sources, model, fabric, targets=targets)
    if newest is not None:
        job.restore(newest)
    if is_first():
        folder_run.write(verb, arguments, README.replace("VERB", verb))
        log_to(folder / "log.txt", arguments)
    for line in (*sets.lines, *trained_line(job.model, job.frozen)):
        log.info(line)
    if newest is None:
        for line in warnings(job, len(sets.train)):
            log.warning(line)
    if held_out is not None and newest is None:
        start_from_probe(job, sets.train, held_out, quiet=not isinstance(progress, LiveProgress))
    report = RunReport(folder, settings.report)
    if settings.probe_only:
        return report.at_end(on_first(lambda: finish(verb, job, folder_run, folder / PROBE, held_out, started)))
    signal = fit(job, progress, report.after_evaluation)
    saved = checkpoint.newest(folder)
    assert saved is not None
    if job.step < job.total:
        return report.at_end(FinetuneResult(folder, saved, job.step, job.total, signal=signal))
    if job.evaluation is None:  # a finished run is evaluated again when it is resumed
        job.evaluate()
    job.whole_model.gather()
    return report.at_end(on_first(lambda: finish(verb, job, folder_run, saved, held_out, started)))
