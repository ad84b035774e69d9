"""Pre-train one run, from its configuration to a folder with weights, metrics and pictures."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.data.bands import as_read
from hardpatch.data.content import content_digest
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.left_out import counts
from hardpatch.data.memory import InMemorySource
from hardpatch.data.reading import read_reading
from hardpatch.data.sources import OpenedSource, Source, hold_out, open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from hardpatch.measure.labels import open_labeled
from hardpatch.methods.hpm import HPM
from hardpatch.pretrain import folder as run_folder
from hardpatch.pretrain.build import crops_of, initial_model, target_of, with_channels
from hardpatch.pretrain.checks import check
from hardpatch.pretrain.folder import plan
from hardpatch.pretrain.images import Images, initial_reading, resolve
from hardpatch.pretrain.job import PretrainJob
from hardpatch.pretrain.looked_at import looked_at
from hardpatch.pretrain.micro_batch import fewest_accumulation_steps
from hardpatch.pretrain.monitor import Monitor
from hardpatch.pretrain.pictures import write_check_pictures, write_pictures
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.step import Learner
from hardpatch.pretrain.verdict import Verdict
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.result import write_result

log = logging.getLogger("hardpatch")


@dataclass(frozen=True)
class PretrainResult:
    """Result of :func:`pretrain`."""

    folder: Path
    checkpoint: Path
    """the newest"""
    step: int
    """optimizer steps done"""
    total: int
    """optimizer steps of the complete run"""
    signal: int = 0
    """signal that interrupted the run, 0 for none"""
    metrics: Mapping[str, Any] | None = None
    """the last line of metrics"""
    pictures: tuple[Path, ...] = ()
    verdict: Verdict | None = None
    """whether it has learned anything; None if it was interrupted, or had no checks"""

    @property
    def finished(self) -> bool:
        """True unless the run was interrupted."""
        return self.step == self.total

    def encoder(self, images: Tensor) -> Tensor:
        """Return the mean patch token of each image, ``[B, C, H, W]`` -> float32 ``[B, D]``, by the student's encoder.

        Args:
            images: of any size, resized to that of the run; pixels of the type of the data, which is mostly uint8, or
                for 8-bit data floating-point numbers in [0, 1].
        """
        model = self._model
        pixels = images.float()
        if images.is_floating_point() and model.reading.dtype == "uint8":
            pixels = 255.0 * pixels
        if pixels.shape[-2:] != model.image_size:
            pixels = F.interpolate(pixels, size=model.image_size, mode="bilinear", antialias=True)
        with torch.inference_mode():
            return model.encode(model.normalize(pixels))[:, 1:].float().mean(dim=1)

    @cached_property
    def _model(self) -> HPM:
        """The student of the newest checkpoint, on the CPU."""
        file = self.checkpoint / checkpoint.WEIGHTS
        metadata = checkpoint.read_metadata(file) or {}
        run, reading = run_folder.read_config(self.folder), read_reading(metadata)
        model = initial_model(run, metadata["mean"], metadata["std"], metadata["outputs"], reading)
        model.load_state_dict(checkpoint.with_prefix(load_file(file), "student."))
        return model.requires_grad_(False).eval()


def pretrain(
    recipe: str | None = None,
    *,
    data: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> PretrainResult:
    """Pre-train on images without labels: ``hardpatch pretrain``.

    Args:
        recipe: named run to start from; ``demo`` if neither this nor ``data`` is set.
        data: images: one path or several, as :func:`hardpatch.data.sources.open_source` takes them.
        out: folder of the run; ``runs/NAME`` by default.
        config: YAML file of settings, in place of a recipe.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; silent by default.
        arguments: command line of the call, for the folder's README.
        settings: further settings, such as ``epochs=10`` or ``**{"optim.base_lr": 5e-4}``.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written.
        TrainingError: if the loss becomes NaN or infinite.
    """
    changes = [f"--{name}={value}" for name, value in settings.items()]
    run, folder = plan(recipe, config, data, None if out is None else Path(out), changes, resume=resume)
    return train(run, folder, resume=resume, progress=progress, arguments=arguments)


def train(
    run: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    pictures: bool = True,
) -> PretrainResult:
    """Train a run to its end, or until SIGINT or SIGTERM; see :func:`pretrain`.

    Args:
        run: the configuration.
        folder: of the run; new, or with ``resume`` the folder of a run with these settings.
        resume: continue from the newest checkpoint, if there is one.
        progress: shows steps and metrics.
        arguments: command line for the folder's README.
        pictures: draw curves and difficulty at the end.
    """
    started = time.monotonic()
    check(run)
    run_folder.check_resume(folder, run) if resume else run_folder.check_new(folder)
    opened = _open(run)
    newest = checkpoint.newest(folder)
    source, held = hold_out(opened, run.data.hold_out)
    images = _images(run, source, newest)
    if run.data.in_memory == "host":
        source = InMemorySource(source, images.reading)
    job = _job(run, folder, source, newest, images, content_digest(opened), held)
    run_folder.write(folder, run, arguments or ["pretrain", "--out", str(folder)])
    log_to(folder / "log.txt")
    for line in (f"--data: {summarize(opened)}", *images.notes, *job.notes):
        log.info("%s", line)
    _log_micro_batches(run, job)
    job.draw = write_check_pictures if pictures else None
    signal = fit(job, progress or Silent())
    saved = checkpoint.newest(folder)
    assert saved is not None
    metrics = (read_metrics(folder / "metrics.jsonl") or [{}])[-1]
    if job.step < job.total:
        return PretrainResult(folder, saved, job.step, job.total, signal, metrics)
    paths = tuple(write_pictures(job)) if pictures else ()
    found = None if job.monitor is None else job.verdict(job.monitor.rows(job.total + 1)[-1])
    write_result(
        folder,
        "pretrain",
        run=str(folder),
        data={"train": run.data.paths},
        images={"train": len(source)} | ({"held_out": len(held)} if held else {}),
        classes=None,
        left_out=counts(source.skipped, len(job.bad_files)),
        seconds=time.monotonic() - started,
        steps=job.total,
        weights=str(saved / checkpoint.WEIGHTS),
        metrics=metrics,
        verdict=None if found is None else found.to_dict(),
    )
    return PretrainResult(folder, saved, job.step, job.total, 0, metrics, paths, found)


def _open(run: RunConfig) -> OpenedSource:
    """Open the images, and once the labeled sets, so that a mistake in them does not stop the training later."""
    try:
        source = as_read(open_source(run.data.path, run.data.columns), initial_reading(run))
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    if run.knn.train is not None and run.knn.val is not None:
        open_labeled(run.knn.train, run.knn.val, run.data.columns, options=("--knn.train", "--knn.val"))
    return source


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
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, images.mean, images.std, outputs, images.reading)
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
    job = PretrainJob(run, folder, source, learner, outputs, device_dataset, content, monitor)
    if newest is not None:
        job.restore(newest)
    return job


def _images(run: RunConfig, source: Source, newest: Path | None) -> Images:
    """Look at the images; a resumed run keeps what it found at its start."""
    if newest is None:
        return resolve(run, source)
    metadata = checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
    return Images(read_reading(metadata), metadata["mean"], metadata["std"])
