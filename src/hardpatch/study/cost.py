"""Estimate what a study costs before it starts: ``hardpatch study plan``."""

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from hardpatch.bench.flops import step_flops
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.study.plan import Plan, Study, Task, plan
from hardpatch.study.stopwatch import SECONDS, Stopwatch, step_kind
from hardpatch.study.trainings import classifier_settings, tokenizer_settings

PATIENCE = 60.0
"""Seconds after which further kinds of steps are estimated by their arithmetic and not measured."""


class Cost(NamedTuple):
    """Cost of a run, over all seeds."""

    name: str
    runs: int
    images: int
    """Training images that all of its runs see together."""
    speed: float | None
    """Images per second; None if it could not be measured."""
    measuring: float
    """Seconds of its measurements (k-NN, linear probe, fine-tuning) over all seeds."""
    note: str = ""
    """Reason why there is no speed; or that the speed was not measured."""

    @property
    def seconds(self) -> float | None:
        """Seconds of training and measurements, one run after another."""
        return None if self.speed is None else self.images / self.speed + self.measuring


def print_plan(study: Study, images_per_second: float | None = None) -> int:
    """Print the runs of a study and their cost; returns the exit code.

    Args:
        study: tables, at their scale.
        images_per_second: training speed; None measures it with a few steps of each kind of run.

    Raises:
        UserError: for a mistake in the settings or the data.
    """
    planned = plan(study)
    try:
        images = len(open_source(study.data, study.columns))
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    tasks = list({task.run_name: task for stage in planned.stages for task in stage}.values())
    rows = sum(len(table.rows) for table in study.tables)
    runs = sum(map(len, planned.stages))
    print(f"{rows} rows, {runs} runs of {len(tasks)} kinds; {images:,d} images to train on", flush=True)
    width = max((len(task.run_name) for task in tasks), default=0)
    if tasks:
        print(f"{'':<{width}}  runs       images  images/s    hours", flush=True)
    costs = []
    try:
        for cost in estimate(study, planned, images_per_second):
            costs.append(cost)
            hours = "       ?" if cost.seconds is None else f"{cost.seconds / 3600:8.2f}"
            speed = "       ?" if cost.speed is None else f"{cost.speed:8.0f}"
            print(f"{cost.name:<{width}}  {cost.runs:4d} {cost.images:12,d}  {speed} {hours}  {cost.note}", flush=True)
    except KeyboardInterrupt:
        print("stopped before all runs were measured; --images_per_second X estimates without measuring")
        return 130
    for (table, row), reason in planned.reasons.items():
        print(f"{table}: {row}: not run, {reason}")
    _print_total(study, planned, costs, measured=images_per_second is None)
    return 0


def _print_total(study: Study, planned: Plan, costs: list[Cost], *, measured: bool) -> None:
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    hours = sum(seconds) / 3600
    runs, images = sum(cost.runs for cost in costs), sum(cost.images for cost in costs)
    source = "the speed of a few steps on this machine" if measured else "the speed of --images_per_second"
    text = f"{runs} runs, {images:,d} images: {hours / study.jobs:.2f} hours"
    text += f" with --jobs {study.jobs}" if study.jobs > 1 else ""
    text += f", at {source}"
    text += (
        ", k-NN, linear probe and fine-tuning included"
        if measured
        else "; k-NN, linear probe and fine-tuning come on top"
    )
    measures = [measure for stage in planned.stages for task in stage for measure in task.measures]
    for measure in ("detect", "segment", "segment_160k"):
        if count := measures.count(measure):
            text += f"; {count} trainings of {measure} come on top"
    unknown = sum(cost.seconds is None for cost in costs)
    print(text + (f"; {unknown} kinds of runs could not be measured" if unknown else ""))


def estimate(study: Study, planned: Plan, images_per_second: float | None = None) -> Iterator[Cost]:
    """Yield the cost of each run as it is known.

    Runs whose steps do the same arithmetic are measured once. The runs that a run depends on need not be done: an
    untrained predictor or tokenizer is as slow as a trained one.
    """
    images = len(open_source(study.data, study.columns))
    counts: dict[str, int] = {}
    tasks: dict[str, Task] = {}
    for task in (task for stage in planned.stages for task in stage):
        counts[task.run_name] = counts.get(task.run_name, 0) + 1
        first = tasks.setdefault(task.run_name, task)
        assert set(task.measures) <= set(first.measures)
    stopwatch = None
    if images_per_second is None:  # measurements take time beside the steps, as much as these or more
        kinds = len({step_kind(task) for task in tasks.values()})
        stopwatch = Stopwatch(study, min(SECONDS, PATIENCE / (4 * max(1, kinds))))
    speeds = _Speeds(stopwatch)
    for name, task in tasks.items():
        seen = _images(study, task, images)
        if stopwatch is None:
            yield Cost(name, counts[name], counts[name] * seen, images_per_second, 0.0)
            continue
        _announce(name)
        speed, note = speeds.of(study, task)
        measuring = counts[name] * stopwatch.measuring(task)
        _announce("")
        yield Cost(name, counts[name], counts[name] * seen, speed, measuring, note)


class _Speeds:
    """Images per second by kind of step."""

    def __init__(self, stopwatch: Stopwatch | None) -> None:
        self.stopwatch, self.started = stopwatch, time.monotonic()
        self.measured: dict[str, tuple[float, RunConfig]] = {}

    def of(self, study: Study, task: Task) -> tuple[float | None, str]:
        """Return the speed of a run and a note."""
        assert self.stopwatch is not None
        kind = step_kind(task)
        if kind in self.measured:
            return self.measured[kind][0], ""
        if time.monotonic() - self.started > PATIENCE:
            return self._by_arithmetic(task)
        try:
            speed = self.stopwatch.training_speed(task)
        except UserError as error:
            return None, str(error)
        self.measured[kind] = speed, task.run
        return speed, ""

    def _by_arithmetic(self, task: Task) -> tuple[float | None, str]:
        """Estimate by the operations of a step, beside a run that was measured."""
        operations = step_flops(task.run) if task.kind == "pretrain" else None
        if operations is not None:
            for speed, run in self.measured.values():
                if (known := step_flops(run)) is not None:
                    ratio = sum(known.values()) / sum(operations.values())
                    return speed * ratio, "speed by its arithmetic"
        return None, f"not measured within {PATIENCE:.0f} s"


def _images(study: Study, task: Task, images: int) -> int:
    """Return the number of training images that a run sees."""
    if task.kind == "tokenizer":
        tokenizer = tokenizer_settings(study, task)
        return tokenizer.total_steps(images) * tokenizer.batch_size
    if task.kind in ("supervised_teacher", "scratch", "half"):
        settings = classifier_settings(study, task, random=True)
        return settings.total_steps(len(open_source(study.train, study.columns))) * settings.batch_size
    return task.run.total_steps(images) * task.run.batch_size


def _announce(name: str) -> None:
    """Say on a terminal what is measured; an empty name takes the line away."""
    if sys.stderr.isatty():
        print(f"\r\033[Kmeasuring {name} ..." if name else "\r\033[K", end="", file=sys.stderr, flush=True)
