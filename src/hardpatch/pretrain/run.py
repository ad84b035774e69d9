"""Pre-train one run, from its configuration to a folder with weights, metrics and pictures."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hardpatch.configuration import config as config_of
from hardpatch.configuration.build import crops_of, initial_model, target_of, with_channels
from hardpatch.configuration.checks import check
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.size import check_fits
from hardpatch.data.content import content_digest
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.left_out import counts
from hardpatch.data.memory import InMemorySource
from hardpatch.data.reading import read_reading
from hardpatch.data.sources import OpenedSource, Source, hold_out
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from hardpatch.files import optional_file, write_text_atomically
from hardpatch.measure.labels import open_labeled
from hardpatch.page.during import RunReport
from hardpatch.paths import user_path
from hardpatch.pretrain import folder as run_folder
from hardpatch.pretrain.continuation import take_weights, without_frozen_steps
from hardpatch.pretrain.images import Images, open_images, resolve
from hardpatch.pretrain.job import PretrainJob
from hardpatch.pretrain.looked_at import looked_at
from hardpatch.pretrain.micro_batch import fewest_accumulation_steps
from hardpatch.pretrain.monitor import Monitor
from hardpatch.pretrain.pictures import write_check_pictures, write_pictures
from hardpatch.pretrain.plan import Plan
from hardpatch.pretrain.planning import estimate, plan_or_configure
from hardpatch.pretrain.result import PretrainResult
from hardpatch.pretrain.step import Learner
from hardpatch.processes import is_first, launched, on_first
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.launch import count_devices, launch
from hardpatch.train.log import log_to
from hardpatch.train.loggers import check_installed
from hardpatch.train.loop import fit
from hardpatch.train.metrics import logged_pictures, read_metrics
from hardpatch.train.notebook import default_progress
from hardpatch.train.progress import Progress
from hardpatch.train.result import write_result
from hardpatch.train.run_folder import claimed, resume_point

ANNOUNCED = 20_000
"""Images that a training sees, from which on it is measured how long it will take."""

log = logging.getLogger("hardpatch")


def pretrain(
    recipe: str | Plan | None = None,
    *,
    data: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    hours: float | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> PretrainResult:
    """Pre-train on images without labels: ``hardpatch pretrain``.

    Args:
        recipe: named run to start from, or a plan of :func:`hardpatch.plan`. Without it settings are chosen for
            ``data``; without ``data`` it is ``demo``.
        data: images: one path or several, as :func:`hardpatch.data.sources.open_source` takes them.
        out: folder of the run; ``runs/NAME`` by default.
        config: YAML file of settings, in place of a recipe.
        hours: time that the training may take; with a recipe only its length follows.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; by default in a notebook only.
        arguments: command line of the call, for the folder's README.
        settings: further settings, such as ``epochs=10`` or ``**{"optim.base_lr": 5e-4}``.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written.
        TrainingError: if the loss becomes NaN or infinite.
    """
    folder = None if out is None else user_path(out, "--out")
    run: RunConfig | Plan
    names: Collection[str] = ()
    if isinstance(recipe, Plan):
        if settings or data or config or resume or hours:
            raise UserError("plan: it holds all settings; expected nothing beside it but out, or make another plan")
        run, folder = recipe, folder or Path("runs") / "run"
    else:
        changes = [f"--{name}={value}" for name, value in settings.items()]
        names = config_of.names_in(changes)
        run, folder = plan_or_configure(recipe, config, data, folder, changes, resume=resume, hours=hours)
    return train(run, folder, resume=resume, progress=progress, arguments=arguments, announce_time=True, names=names)


def train(
    run: RunConfig | Plan,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    pictures: bool = True,
    announce_time: bool = False,
    names: Collection[str] = (),
) -> PretrainResult:
    """Train a run to its end, or until a signal stops it; see :func:`pretrain`.

    Args:
        run: the configuration, or a plan.
        folder: of the run; new, or with ``resume`` the folder of a run with these settings.
        resume: continue from the newest checkpoint, if there is one.
        progress: shows steps and metrics.
        arguments: command line for the folder's README.
        pictures: draw curves and difficulty at the end.
        announce_time: say before the first step how long the training will take, which takes seconds to measure.
        names: settings that the call names, of which a resumed run may change length and peak learning rate.
    """
    plan, run = (run, run.run) if isinstance(run, Plan) else (None, run)
    check(run)
    check_installed(run.train.logger)
    check_fits(run)
    if not resume and is_first():
        run_folder.check_new(folder)
    devices = count_devices(run.train.devices, run.train.device)
    return launch(
        _train,
        run,
        plan,
        folder,
        resume,
        arguments,
        pictures,
        announce_time,
        names,
        progress=progress or default_progress(folder),
        devices=devices,
        nodes=run.train.nodes,
    )


def _train(
    run: RunConfig,
    plan: Plan | None,
    folder: Path,
    resume: bool,
    arguments: Sequence[str],
    pictures: bool,
    announce_time: bool,
    names: Collection[str],
    *,
    progress: Progress,
) -> PretrainResult:
    """Train a run in this process, which may be one of several; see :func:`train`."""
    with claimed(folder, resume=resume):
        if resume:
            run_folder.check_resume(folder, run, names)
        return _train_claimed(run, plan, folder, progress, arguments, pictures=pictures, announce_time=announce_time)


def _train_claimed(
    run: RunConfig,
    plan: Plan | None,
    folder: Path,
    progress: Progress,
    arguments: Sequence[str],
    *,
    pictures: bool,
    announce_time: bool,
) -> PretrainResult:
    started, several = time.monotonic(), launched().world_size > 1
    opened = _open(run)
    newest = resume_point(folder)
    source, held = hold_out(opened, run.data.hold_out)
    images = _images(run, source, newest)
    if run.data.in_memory == "host":
        source = InMemorySource(source, images.reading)
    total = run.total_steps(len(source))
    if plan is None and announce_time and newest is None and total * run.batch_size > ANNOUNCED and not several:
        plan = estimate(run, opened, images.reading)  # before the run's own model takes the memory
    job = _job(run, folder, source, newest, images, content_digest(opened), held)
    if is_first():
        run_folder.write(folder, replace(run, init=job.run.init), arguments or ["pretrain", "--out", str(folder)])
        log_to(folder / "log.txt", arguments)
    extension = run_folder.extension_line(run, len(source))
    for line in (f"--data: {summarize(opened)}", *images.notes, *job.notes, *([extension] if extension else [])):
        log.info("%s", line)
    _log_micro_batches(run, job)
    if plan is not None and is_first():
        _announce(plan, folder)
    report = RunReport(folder, run.train.report if pictures else "no")
    pictures = pictures and run.train.pictures > 0
    job.draw = write_check_pictures if pictures else None
    signal = fit(job, progress, report.after_evaluation)
    job.learner.gather_weights()
    counted = {"train": len(source)} | ({"held_out": len(held)} if held else {})
    return report.at_end(on_first(lambda: _result(job, signal, pictures, counted, started)))


def _result(job: PretrainJob, signal: int, pictures: bool, images: Mapping[str, int], started: float) -> PretrainResult:
    """Return the result; of a finished run also draw the pictures, judge it, and write ``result.json``."""
    folder, run = job.folder, job.run
    saved = checkpoint.newest(folder)
    assert saved is not None
    metrics = (read_metrics(folder / "metrics.jsonl") or [{}])[-1]
    if job.step < job.total:
        return PretrainResult(folder, saved, job.step, job.total, signal, metrics)
    paths: tuple[Path, ...] = ()
    with optional_file(folder / "pictures"), logged_pictures(folder, job.total, run.train.logger):
        paths = tuple(write_pictures(job)) if pictures else ()
    checks = [] if job.monitor is None else job.monitor.rows(job.total + 1)
    found = job.verdict(checks[-1]) if checks else None  # without any, metrics.jsonl could not be written
    write_result(
        folder,
        "pretrain",
        run=str(folder),
        data={"train": run.data.paths},
        images=images,
        classes=None,
        left_out=counts(job.source.skipped, len(job.bad_files)),
        seconds=time.monotonic() - started,
        steps=job.total,
        weights=str(saved / checkpoint.WEIGHTS),
        metrics=metrics,
        verdict=None if found is None else found.to_dict(),
    )
    return PretrainResult(folder, saved, job.step, job.total, 0, metrics, paths, found)


def _open(run: RunConfig) -> OpenedSource:
    """Open the images, and once the labeled sets, so that a mistake in them does not stop the training later."""
    source = open_images(run)
    if run.knn.train is not None and run.knn.val is not None:
        open_labeled(run.knn.train, run.knn.val, run.data.columns, options=("--knn.train", "--knn.val"))
    return source


def _announce(plan: Plan, folder: Path) -> None:
    """Say what was planned, or of a recipe how long it takes, and write it into the folder."""
    with optional_file(folder / "plan.txt"):
        write_text_atomically(folder / "plan.txt", f"{plan}\n")
    log.info("%s", plan if plan.reasons else plan.announcement())


def _log_micro_batches(run: RunConfig, job: PretrainJob) -> None:
    if run.optim.accumulation_steps == "auto":
        count, device = job.learner.accumulation_steps, job.learner.fabric.device
        log.info(
            "optim.accumulation_steps auto: %d micro-batches of %d images on %s", count, run.batch_size // count, device
        )


def _job(
    run: RunConfig,
    folder: Path,
    source: Source,
    newest: Path | None,
    images: Images,
    content: str,
    held: Source | None,
) -> PretrainJob:
    """Build student, teacher and optimizer, and load the newest checkpoint into them."""
    run = with_channels(run, images.reading.number)
    fabric = start_fabric(
        run.train.device,
        run.train.precision,
        "train.",
        strategy=run.train.strategy,
        answer_minutes=run.train.answer_minutes,
    )
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, images.mean, images.std, outputs, images.reading)
    started: tuple[str, ...] = ()
    if run.init.weights is not None and newest is None:
        taken = take_weights(model, run)
        started = taken.lines
        if not taken.has_new_parts:
            run = without_frozen_steps(run)
    if run.train.compile != "no":
        torch.compiler.reset()  # frees what earlier runs of this process compiled
    learner = Learner(run, model, fabric, run.total_steps(len(source)), target, len(source))
    device_dataset = None
    if run.data.in_memory == "device":
        device_dataset = DeviceDataset(source, crops_of(run, images.reading), fabric.device, run.data.device_side)
    if run.optim.accumulation_steps == "auto" and fabric.device.type == "cuda":
        learner.accumulation_steps = fewest_accumulation_steps(learner)
        torch.cuda.reset_peak_memory_stats(fabric.device)
    monitor = None
    if run.verdict.checks:
        monitor = Monitor(run, folder, looked_at(run, model, source, held), learner.mining.target, fabric)
    job = PretrainJob(run, folder, source, learner, outputs, device_dataset, content, monitor, started)
    if newest is not None:
        job.restore(newest)
    return job


def _images(run: RunConfig, source: Source, newest: Path | None) -> Images:
    """Look at the images; a resumed run keeps what it found at its start."""
    if newest is None:
        return resolve(run, source)
    metadata = checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
    return Images(read_reading(metadata), metadata["mean"], metadata["std"])
