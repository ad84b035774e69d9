"""Estimate what a study costs before it starts."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from hardpatch.data.sources import open_source
from hardpatch.errors import TrainingError, UserError
from hardpatch.finetune.settings import SCRATCH
from hardpatch.models.tokenizer import FILE
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.run import train
from hardpatch.pretrain.sections import MethodConfig, RunConfig
from hardpatch.pretrain.tokenizer import Quality, TokenizerJob, initial_tokenizer
from hardpatch.pretrain.tokenizer_run import write_tokenizer
from hardpatch.study.plan import PREDICTOR, TOKENIZER, Study, Task, finetune_settings, plan, tokenizer_settings
from hardpatch.study.table_d import supervised_job
from hardpatch.train.device import start_fabric
from hardpatch.train.loop import fit
from hardpatch.train.progress import Silent
from hardpatch.train.settings import changed

WARM_UP, MEASURED = 2, 6
"""Steps of a row before and while its speed is measured."""


class Cost(NamedTuple):
    """Cost of a row, over all seeds."""

    name: str
    runs: int
    images: int
    """Images that all of its runs see together."""
    speed: float | None
    """Images per second; None if it could not be measured."""
    note: str
    """Reason why there is no speed; empty if there is one."""

    @property
    def hours(self) -> float | None:
        """Hours of training, one run after another."""
        return None if self.speed is None else self.images / self.speed / 3600


def estimate_costs(study: Study, images_per_second: float | None = None) -> tuple[list[Cost], dict[str, str]]:
    """Estimate the cost of each row.

    Args:
        study: the table, at its scale.
        images_per_second: training speed; None measures it by training each row for a few steps.

    Returns:
        The costs of the rows that can be run; and by row key the reason why a row cannot be run.

    Raises:
        UserError: for a mistake in the settings or the data.
    """
    stages, reasons = plan(study)
    try:
        images = len(open_source(study.data))
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    rows: dict[str, list[Task]] = {}
    for task in (task for stage in stages for task in stage):
        rows.setdefault(task.row.name, []).append(task)
    costs = []
    for name, tasks in rows.items():
        speed, note = (images_per_second, "") if images_per_second is not None else measure_speed(study, tasks[0])
        if tasks[0].row == TOKENIZER:
            tokenizer = tokenizer_settings(study, tasks[0])
            run_images = tokenizer.total_steps(images) * tokenizer.batch_size
        else:
            run_images = tasks[0].run.total_steps(images) * tasks[0].run.batch_size
        costs.append(Cost(name, len(tasks), len(tasks) * run_images, speed, note))
    return costs, reasons


def finetuned_images(study: Study) -> int:
    """Count the images that fine-tuning all runs sees, which comes on top of :func:`estimate_costs`."""
    stages, _ = plan(study)
    runs = sum(task.row not in (TOKENIZER, PREDICTOR) and task.row.keep is None for stage in stages for task in stage)
    if not runs:
        return 0
    run = finetune_settings(study, next(task.run for stage in stages for task in stage))
    return round(runs * (run.epochs or 0.0) * len(open_source(study.train)))


def measure_speed(study: Study, task: Task) -> tuple[float | None, str]:
    """Measure the images per second of a short training.

    The runs that a row depends on need not be done: an untrained predictor or tokenizer is as slow as a trained one.

    Returns:
        The speed, or None and the reason why it could not be measured.
    """
    stopwatch = _Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if task.row == TOKENIZER:
                tokenizer = changed(tokenizer_settings(study, task), {"steps": WARM_UP + MEASURED})
                fabric = start_fabric(tokenizer.device, tokenizer.precision, "--")
                fit(TokenizerJob(tokenizer, folder, open_source(study.data), fabric), stopwatch)
                return MEASURED * tokenizer.batch_size / stopwatch.seconds, ""
            run = _shortened(task.run)
            if run.method.host == "beit" and study.tokenizer is None:
                file = str(_write_untrained_tokenizer(study, task, folder))
                run = replace(run, method=replace(run.method, tokenizer=file))
            if task.row.keep is None:
                train(run, folder / "run", progress=stopwatch, pictures=False)
            else:
                predictor = initial_model(replace(run, method=MethodConfig()))
                settings = changed(finetune_settings(study, run), {**SCRATCH, "steps": WARM_UP + MEASURED})
                settings = replace(settings, warmup_epochs=0.0, batch_size=run.batch_size)
                fit(supervised_job(run, settings, folder, study.train, study.val, task.row.keep, predictor), stopwatch)
        except (UserError, TrainingError) as error:
            return None, str(error)
    return MEASURED * run.batch_size / stopwatch.seconds, ""


def _shortened(run: RunConfig) -> RunConfig:
    """Return the run with a few steps only, and with mining from the first step on."""
    alpha = max(run.method.alpha_start, run.method.alpha_end)
    return replace(run, steps=WARM_UP + MEASURED, epochs=None, method=replace(run.method, alpha_start=alpha))


def _write_untrained_tokenizer(study: Study, task: Task, folder: Path) -> Path:
    run, path = tokenizer_settings(study, task), folder / FILE
    write_tokenizer(path, initial_tokenizer(run), run, Quality(images=0, error=1.0, used=0, entropy=0.0))
    return path


class _Stopwatch(Silent):
    """A progress display that times the steps after the warm-up."""

    def start(self, step: int, total: int, batch_size: int) -> None:
        self.steps, self.started, self.seconds = 0, 0.0, 0.0

    def advance(self) -> None:
        self.steps += 1
        if self.steps in (WARM_UP, WARM_UP + MEASURED) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.steps == WARM_UP:
            self.started = time.monotonic()
        if self.steps == WARM_UP + MEASURED:
            self.seconds = time.monotonic() - self.started
