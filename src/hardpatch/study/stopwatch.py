"""Measure how fast the steps and the measurements of a study are on this machine, in seconds."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, transform_of
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source, Subset, open_source
from hardpatch.data.workers import resolve_workers
from hardpatch.measure.features import Features
from hardpatch.measure.knn import knn_accuracy
from hardpatch.measure.linear import linear_probe
from hardpatch.models.tokenizer import FILE
from hardpatch.pretrain.speed import BATCH, median_seconds, seconds_per_image
from hardpatch.pretrain.tokenizer import Quality, initial_tokenizer
from hardpatch.pretrain.tokenizer_run import write_tokenizer
from hardpatch.study.plan import Study, Task
from hardpatch.study.trainings import classifier_settings, tokenizer_settings
from hardpatch.train.device import start_fabric

SECONDS = 1.0
"""A step is repeated for about this long at most."""

NO_ARITHMETIC = ("seed", "steps", "epochs", "batch_size", "optim", "data", "train")
"""Settings that do not change the operations of a step."""


def step_kind(task: Task) -> str:
    """Return what decides the speed of a run's steps, equal for runs that do the same arithmetic."""
    values = {name: value for name, value in config.to_dict(task.run).items() if name not in NO_ARITHMETIC}
    method = dict(values["method"])
    mined = max(method.pop("alpha_start"), method.pop("alpha_end")) > 0
    method.pop("mining")
    kind = task.kind if task.kind in ("tokenizer", "pretrain") else "supervised"
    return repr(
        (kind, task.keep, mined, sorted({**values, "method": sorted(method.items(), key=str)}.items(), key=str))
    )


class Stopwatch:
    """Times steps on noise and measurements on random features; each is timed once.

    Args:
        study: its data and jobs; every job has its share of the threads.
        seconds: each step is repeated for about this long.
    """

    def __init__(self, study: Study, seconds: float = SECONDS) -> None:
        self.study, self.seconds = study, seconds
        self._threads = max(1, torch.get_num_threads() // study.jobs)
        self._forward: dict[str, float] = {}
        self._loaded: dict[str, float] = {}

    def training_speed(self, task: Task) -> float:
        """Return the images per second of a run's training, loading included.

        Raises:
            UserError: if its network cannot be built.
        """
        with _threads(self._threads), tempfile.TemporaryDirectory() as folder:
            if task.kind == "tokenizer":
                seconds = self._tokenizer_step(task)
            elif task.kind == "pretrain":
                seconds = self._pretraining_step(task, Path(folder))
            else:
                seconds = self._supervised_step(task)
        return 1 / self._with_loading(seconds, task.run)

    def measuring(self, task: Task) -> float:
        """Return the seconds of the k-NN vote, the linear probe and the fine-tuning of a run with one seed."""
        with _threads(self._threads):
            seconds = 0.0
            if {"knn", "linear"} & set(task.measures):
                seconds += (self.images + self.val_images) * self._encoder_forward(task.run)
            if "knn" in task.measures:
                seconds += self._knn
            if "linear" in task.measures:
                seconds += self._linear
            if "finetune" in task.measures and task.kind == "pretrain":
                settings = classifier_settings(self.study, task)
                images = settings.total_steps(self.images) * settings.batch_size
                seconds += images * self._with_loading(self._supervised_step(task), task.run)
        return seconds

    @cached_property
    def images(self) -> int:
        """Number of labeled images to learn from."""
        return len(open_source(self.study.train, self.study.columns))

    @cached_property
    def val_images(self) -> int:
        """Number of labeled images to evaluate on."""
        return len(open_source(self.study.val, self.study.columns, "val"))

    def _pretraining_step(self, task: Task, folder: Path) -> float:
        """Return seconds per image of a step of pre-training, without loading."""
        run = task.run
        if run.method.host == "beit" and self.study.tokenizer is None:
            settings = tokenizer_settings(self.study, task)
            quality = Quality(images=0, error=1.0, used=0, entropy=0.0)
            write_tokenizer(folder / FILE, initial_tokenizer(settings), settings, quality)
            run = replace(run, method=replace(run.method, tokenizer=str(folder / FILE)))
        if run.method.frozen == "hardpatch":  # not trained yet; the student's own teacher is as large
            run = replace(run, method=replace(run.method, target="teacher", frozen=None, frozen_weights=None))
        return seconds_per_image(run, self.seconds)

    def _supervised_step(self, task: Task) -> float:
        """Estimate seconds per image of a supervised step: three forward passes of the patches that it sees."""
        kept = 0.5 if task.keep in ("random", "easiest", "hardest") else 1.0
        ranking = self._encoder_forward(task.run) if task.keep in ("easiest", "hardest") else 0.0
        return 3 * kept * self._encoder_forward(task.run) + ranking

    def _encoder_forward(self, run: RunConfig) -> float:
        """Return seconds per image of the encoder on whole images."""
        kind = repr((run.encoder_shape, run.image_size, run.model))
        if kind not in self._forward:
            fabric = start_fabric(run.train.device, run.train.precision, "train.")
            plain = replace(run, method=replace(run.method, frozen=None, frozen_weights=None, target="auto"))
            model = initial_model(plain, [0.5] * run.data.channel_count, [0.3] * run.data.channel_count, 16).to(
                fabric.device
            )
            images = torch.randn(16, run.data.channel_count, *run.image_size, device=fabric.device)

            def step() -> None:
                with torch.no_grad(), fabric.autocast():
                    model.host.encoder(images)

            self._forward[kind] = median_seconds(step, fabric.device, self.seconds) / len(images)
        return self._forward[kind]

    def _tokenizer_step(self, task: Task) -> float:
        """Return seconds per image of a step that trains visual tokens."""
        settings = tokenizer_settings(self.study, task)
        fabric = start_fabric(settings.device, settings.precision, "--")
        tokenizer = initial_tokenizer(settings).to(fabric.device).train()
        images = torch.rand(BATCH // 4, 3, settings.image_size, settings.image_size, device=fabric.device)

        def step() -> None:
            with fabric.autocast():
                loss = tokenizer(images).images.mean()
            loss.backward()

        return median_seconds(step, fabric.device, self.seconds) / len(images)

    def _with_loading(self, seconds: float, run: RunConfig) -> float:
        """Return seconds per image with decoding and cropping, which share the cores with a step on a CPU."""
        loading = self._loading(run)
        on_cpu = start_fabric(run.train.device, run.train.precision, "train.").device.type == "cpu"
        if on_cpu:
            return seconds + loading / self._threads
        return max(seconds, loading / max(1, resolve_workers(run.data.workers)))

    def _loading(self, run: RunConfig) -> float:
        """Return seconds per image of decoding and cropping on one core; hosts with several crops take longer."""
        kind = repr((run.data, run.image_size, run.ibot if run.method.host == "ibot" else None))
        if kind not in self._loaded:
            source: Source = open_source(self.study.data, self.study.columns)
            some = min(len(source), 256)
            batches = train_batches(
                Subset(source, range(some)), transform_of(run), batch_size=min(32, some), seed=0, start=0, workers=0
            )
            start, images = time.perf_counter(), 0
            while time.perf_counter() - start < self.seconds / 2:
                images += len(next(batches).images)
            self._loaded[kind] = (time.perf_counter() - start) / images
            batches.close()
        return self._loaded[kind]

    @cached_property
    def _knn(self) -> float:
        """Seconds of the k-NN vote: of a tenth of the images, times ten."""
        train, val, classes = self._features()
        part = max(1, len(val.labels) // 10)
        start = time.perf_counter()
        few = val._replace(features=val.features[:part], labels=val.labels[:part], indices=val.indices[:part])
        knn_accuracy(train, few, classes=classes)
        return (time.perf_counter() - start) * len(val.labels) / part

    @cached_property
    def _linear(self) -> float:
        """Seconds of the quick linear probe: of 3 epochs, times 30."""
        train, val, classes = self._features()
        start = time.perf_counter()
        linear_probe(train, val, classes=classes, generator=torch.Generator().manual_seed(0), epochs=3)
        return (time.perf_counter() - start) * 30

    def _features(self) -> tuple[Features, Features, int]:
        source = open_source(self.study.train, self.study.columns)
        classes = len(source.classes or ())
        train, val = (_random_features(size, classes) for size in (self.images, self.val_images))
        return train, val, classes


def _random_features(images: int, classes: int) -> Features:
    labels = torch.randint(0, classes, (images,))
    return Features(torch.randn(images, 128), labels, [], torch.arange(images))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
