"""Pre-training as a job of the training loop."""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hardpatch.configuration.build import initial_like, transform_of
from hardpatch.configuration.config import to_dict
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch, on_device
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.loader import train_batches
from hardpatch.data.row_groups import choose_order
from hardpatch.data.sources import Source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.measure.knn import knn_accuracy
from hardpatch.measure.labels import labeled_features
from hardpatch.methods.hpm import HPM
from hardpatch.methods.teacher import Teacher
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.pretrain import best
from hardpatch.pretrain.facts import Facts, facts
from hardpatch.pretrain.folder import refuse_edited
from hardpatch.pretrain.guard import stops_mining
from hardpatch.pretrain.monitor import Monitor, check_steps, fewer_checks
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.step import Learner, Step
from hardpatch.pretrain.verdict import Verdict, verdict
from hardpatch.pretrain.vital_signs import mean_of_finite, vital_signs
from hardpatch.pretrain.worse import getting_worse
from hardpatch.processes import gather_values, on_first
from hardpatch.train import checkpoint
from hardpatch.train.cadence import Cadence
from hardpatch.train.state import TrainingState

PICTURE_SECONDS = 30.0
"""Seconds between two sets of pictures, at least; the end of the run draws them in any case."""

log = logging.getLogger("hardpatch")


class PretrainJob:
    """Student, teacher and data of a run, for :func:`hardpatch.train.loop.fit`.

    Args:
        run: the configuration.
        folder: of the run.
        source: the images.
        learner: student, teacher and optimizer.
        outputs: values per patch of another network's target; saved in the checkpoint.
        held: the same images on the device, from which batches are then made.
        content: digest of the images, saved in the checkpoint and compared when the run is resumed.
        monitor: measurements of the checks; None without checks.
        started: what was taken over from the weights that the run starts from, a line each.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        source: Source,
        learner: Learner,
        outputs: int | None = None,
        held: DeviceDataset | None = None,
        content: str | None = None,
        monitor: Monitor | None = None,
        started: tuple[str, ...] = (),
    ) -> None:
        self.run, self.folder, self.source, self.learner, self.outputs = run, folder, source, learner, outputs
        self.held, self.content, self.monitor, self.started = held, content, monitor, started
        self.groups, self._order = choose_order(source, run.data.shuffle, run.data.shuffle_window)
        self.mining_stopped = False
        self._warned = set[str]()
        self.draw: Callable[[PretrainJob], None] | None = None
        """Draws pictures of a check during the training."""
        self._drawn_at = time.monotonic()
        self.total, self.batch_size, self.images = learner.total, run.batch_size, len(source)
        self.check_steps = frozenset[int]() if monitor is None else check_steps(run, self.total)
        self.cadence = Cadence(
            self.total,
            run.train.log_every,
            run.train.checkpoint_minutes,
            run.train.checkpoint_steps,
            None if run.knn.train is None else run.knn.every_epochs * self.images / run.batch_size,
            evaluate_at_end=False,
            evaluate_at=self.check_steps,
            keep_every=run.train.keep_every,
        )
        self.bad_files = BadFiles(self.images, run.data.max_bad_fraction, source=source)
        self._last: tuple[Schedule, Step]

    @property
    def notes(self) -> tuple[str, ...]:
        """Order of the images, and those that the checks look at, a line each."""
        looked_at: tuple[str, ...] = ()
        if self.monitor is not None:
            looked_at = (*self.monitor.images.notes, *fewer_checks(self.run, self.total))
        return (*self.started, *((self._order,) if self._order else ()), *looked_at)

    @property
    def state(self) -> TrainingState:
        """Tensors that a checkpoint contains."""
        return self.learner.state

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.learner.step

    def batches(self) -> Generator[Batch, None, None]:
        """Yield batches from the next step on."""
        run, device = self.run, self.learner.fabric.device
        rank, world_size = self.learner.part
        if self.held is not None:
            return self.held.batches(
                batch_size=run.batch_size,
                seed=run.seed,
                start=self.step,
                rank=rank,
                world_size=world_size,
                crops=run.data.crops,
            )
        batches = train_batches(
            self.source,
            transform_of(run, self.learner.model.reading),
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.step,
            workers=resolve_workers(run.data.workers),
            rank=rank,
            world_size=world_size,
            pin_memory=device.type == "cuda",
            crops=run.data.crops,
            groups=self.groups,
        )
        return on_device(batches, device)

    def train_step(self, batch: Batch, *, observe: bool) -> None:
        """Take one optimizer step."""
        values = schedule(self.run, self.step, self.total)
        if self.mining_stopped:
            values = values._replace(alpha=0.0)
        values = values._replace(lr=values.lr * self.learner.bad_steps.lr_factor)
        self._last = values, self.learner.train_step(batch, values, observe=observe)

    def metrics(self) -> dict[str, float]:
        """Return the mean losses since the last call, and schedule, vital signs and memory of the last step."""
        values, step = self._last
        learner, device = self.learner, self.learner.fabric.device
        signs: dict[str, torch.Tensor] = {}
        if not step.left_out:
            signs = vital_signs(step.mined, step.losses)
            if step.gradient_norm is not None:
                signs["gradient_norm"] = step.gradient_norm
        numbers = {name: value.item() for name, value in signs.items()}
        row = {
            **learner.means.read(learner.bad_steps.read_left_out() * learner.accumulation_steps),
            **values.metrics(self.run),
            **learner.model.host.scheduled_metrics(values.progress),
            **mean_of_finite(gather_values(numbers)),
        }
        if device.type == "cuda":  # peak of the tensors since the last line
            row["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            torch.cuda.reset_peak_memory_stats(device)
        return row

    @property
    def metadata(self) -> dict[str, Any]:
        """Plain values from which the model is rebuilt."""
        model = self.learner.model
        return {
            "config": to_dict(self.run),
            "encoder": encoder_settings(model.host.encoder),
            "mean": model.mean.tolist(),
            "std": model.std.tolist(),
            "reading": model.reading.to_dict(),
            "steps": self.total,
            "images": self.images,
            "content": self.content,
            "outputs": self.outputs,
            "shuffle": "samples" if self.groups is None else "row_groups",
            "mining_stopped": self.mining_stopped,
        }

    def save(self) -> None:
        """Write a checkpoint of this step."""
        train = self.run.train
        self.state.save(self.folder, self.step, self.metadata, keep=train.keep_checkpoints, keep_every=train.keep_every)

    def restore(self, saved: Path) -> None:
        """Restore a checkpoint of this run exactly.

        Raises:
            UserError: if there are other images.
        """
        metadata = checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {}
        images, content = metadata.get("images"), metadata.get("content")
        if images != self.images:
            raise UserError(
                f"--resume: the run began with {images} images and --data now has {self.images}; "
                "restore the data set, or start a new run with another --out"
            )
        if content is not None and content != self.content:
            if to_dict(self.run)["data"]["path"] != metadata["config"]["data"]["path"]:
                raise UserError(
                    f"--resume: --data has as many images as the run began with, {images}, but other ones: names, "
                    "sizes or contents differ; name a copy of the same images, or start a new run with another --out"
                )
            # a broken image may have been repaired
            log.warning("--resume: images in --data were replaced since the last call; the training goes on with them")
        refuse_edited(self.folder, saved, metadata, self.run)
        # as the run began: earlier versions shuffled all images, and what fits into memory may have changed
        self.groups, self._order = choose_order(
            self.source, metadata.get("shuffle", "samples"), self.run.data.shuffle_window
        )
        self.mining_stopped = metadata.get("mining_stopped", False)
        self.learner.step = self.state.restore(saved)

    def evaluate(self) -> dict[str, float]:
        """Check the run, measure its k-NN accuracy, or both, whichever is due.

        The first of several processes checks alone. All of them compute features for k-NN.
        """
        row: dict[str, float] = {}
        model, teacher = self.learner.gather_weights()
        if self.step in self.check_steps:
            row, stopped, keeps = on_first(lambda: self._check(model, teacher))
            if stopped != self.mining_stopped or keeps:
                self.mining_stopped = stopped
                self.save()  # before the line of the check, so that neither is lost without the other
                self.state.writer.wait()
            if keeps:
                on_first(lambda: best.keep(self.folder, self.step))
        if self.run.knn.train is not None and self.cadence.completes_interval(self.step):
            row |= self._knn(model)
        self.learner.release_weights()
        return row

    def _check(self, model: HPM, teacher: Teacher | None) -> tuple[dict[str, float], bool, bool]:
        """Measure what the run has learned so far.

        Also returns whether mining is to be stopped from here on, and whether these weights are to be kept as the best.
        """
        assert self.monitor is not None
        step, stopped = self.step, self.mining_stopped
        row = self.monitor.measure(model, teacher, step, linear=step in (0, self.total))
        if self.run.mines:
            stopped = self._guard([*self.monitor.rows(step), {"step": step, **row}])
            row["mining_stopped"] = float(stopped)
        keeps = self.run.init.weights is not None and self._compare_with_start(row)
        if 0 < step < self.total:
            summary = self.verdict({"step": step, **row}).summary
            log.info("so far: %s", summary, extra={"so_far": summary})
        if self.draw is not None and self._draws(step):
            self.draw(self)
            self._drawn_at = time.monotonic()
        return row, stopped, keeps

    def _draws(self, step: int) -> bool:
        """Return whether a check draws pictures: before the first step of a run with checks on its way, and later."""
        if step == 0:
            return len(self.check_steps) > 2  # beside those at the start and at the end
        return step < self.total and time.monotonic() - self._drawn_at >= PICTURE_SECONDS

    def _compare_with_start(self, row: Mapping[str, Any]) -> bool:
        """Warn, once each, of what has become worse than at the start. Returns whether these are the best weights."""
        assert self.monitor is not None
        checks = [*self.monitor.rows(self.step), {"step": self.step, **row}]
        if checks[0]["step"] > 0:  # the start was not measured
            return False
        for topic, line in getting_worse(checks, self.facts).items():
            if topic not in self._warned:
                self._warned.add(topic)
                log.warning("step %d: %s", self.step, line)
        measure = best.measure_of(self.run.init.keep_best, row)
        better = measure is not None and best.is_best(measure, checks, self.facts.comparable_from)
        return better and self.step > 0

    @property
    def facts(self) -> Facts:
        """Facts that the verdict rests on."""
        assert self.monitor is not None
        return facts(self.run, self.folder, self.images, self.total, self.monitor.images.held_out)

    def verdict(self, last: Mapping[str, Any]) -> Verdict:
        """Judge the run by its checks up to the ``last``, whose metrics may not be in the log yet."""
        assert self.monitor is not None
        checks = [*self.monitor.rows(self.step), last]
        if checks[0]["step"] > 0 and self.run.init.weights is None:
            checks = [self._untrained, *checks]
        found = verdict(checks, self.facts)
        line = None if self.run.init.weights is None else best.describe(self.run.init.keep_best, checks, self.facts)
        return found if line is None else replace(found, reasons=(*found.reasons, line))

    @cached_property
    def _untrained(self) -> dict[str, Any]:
        """Measure the untrained start of a run that was begun without checks."""
        assert self.monitor is not None
        model, old = initial_like(self.run, self.learner.whole_model.current, self.outputs), self.learner.teacher
        teacher = None if old is None else Teacher(model, old.resolution)
        return {"step": 0, **self.monitor.measure(model, teacher, 0, linear=True)}

    def _guard(self, checks: list[dict[str, Any]]) -> bool:
        """Return whether mining stops, as where the map was upside down at the last checks, and say what changes."""
        stop = stops_mining(checks, self.mining_stopped)
        if stop == self.mining_stopped or self.step == self.total:
            return self.mining_stopped
        told = f"rank correlation with the true loss {checks[-1]['check_map_correlation']:.2f}"
        if self.run.verdict.upside_down == "warn":
            log.warning("the difficulty map is upside down (%s): the patches that are mined are the easy ones", told)
            return self.mining_stopped
        if stop:
            log.warning("the difficulty map is upside down (%s): mining stops, masks are random from here on", told)
        else:
            log.warning("the difficulty map is upright again (%s): mining goes on", told)
        return stop

    def _knn(self, model: HPM) -> dict[str, float]:
        """Measure k-NN accuracy on the labeled set of section ``knn``."""
        knn, data, learner = self.run.knn, self.run.data, self.learner
        assert knn.train is not None
        assert knn.val is not None
        device = learner.fabric.device
        training = model.training
        features = labeled_features(
            model.eval(),
            knn.train,
            knn.val,
            device=device,
            workers=data.workers,
            max_bad_fraction=data.max_bad_fraction,
            columns=data.columns,
        )
        model.train(training)
        accuracy = knn_accuracy(features.train, features.val, classes=len(features.classes), device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return {"knn_top1": accuracy.top1}
