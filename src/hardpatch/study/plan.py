"""What a study will cost, before it starts."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from hardpatch.data.sources import open_source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import TrainingError, UserError
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.run import pretrain, total_steps
from hardpatch.pretrain.sections import MethodConfig, RunConfig
from hardpatch.pretrain.tokenizer import Quality, initial_tokenizer, train_tokenizer, write
from hardpatch.study.runner import PREDICTOR, TOKENIZER, Study, Task, finetuning, plan, tokenizer_run
from hardpatch.study.table_d import Supervised
from hardpatch.train.device import use_device

WARM_UP, MEASURED = 2, 6
"""Steps of a row before and while its speed is measured."""


class Cost(NamedTuple):
    """What a row costs, over all seeds."""

    name: str
    runs: int
    images: int
    """That its runs see, over all."""
    speed: float | None
    """Images a second; None where it could not be measured."""
    note: str
    """Why there is none."""

    @property
    def hours(self) -> float | None:
        """Of training, one run after the other."""
        return None if self.speed is None else self.images / self.speed / 3600


def costs(study: Study, images_per_second: float | None = None) -> tuple[list[Cost], dict[str, str]]:
    """The cost of each row that can be run, and why others cannot, by key.

    Args:
        study: the table, at its scale.
        images_per_second: of training; None trains each row for a few steps.

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
    found = []
    for name, tasks in rows.items():
        speed, note = (images_per_second, "") if images_per_second is not None else measure(study, tasks[0])
        if tasks[0].row == TOKENIZER:
            run = tokenizer_run(study, tasks[0])
            seen = run.steps * run.batch_size
        else:
            seen = total_steps(tasks[0].run, images) * tasks[0].run.batch_size
        found.append(Cost(name, len(tasks), len(tasks) * seen, speed, note))
    return found, reasons


def finetuned_images(study: Study) -> int:
    """Images that fine-tuning all of the runs sees, which comes on top of :func:`costs`."""
    stages, _ = plan(study)
    runs = sum(task.row not in (TOKENIZER, PREDICTOR) and task.row.keep is None for stage in stages for task in stage)
    if not runs:
        return 0
    run = finetuning(study, "", seed=0, device="cpu", workers=0)
    return round(runs * run.epochs * len(open_source(study.train)))


def measure(study: Study, task: Task) -> tuple[float | None, str]:
    """Images a second while training, or why that is not known.

    What a row needs first need not be there: an untrained predictor or tokenizer is as slow as a trained one.
    """
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if task.row == TOKENIZER:
                tokenizer = replace(tokenizer_run(study, task), steps=WARM_UP + MEASURED)
                device, workers = use_device(task.run.train.device), resolve_workers(task.run.data.workers)
                train_tokenizer(open_source(study.data), tokenizer, device=device, workers=workers, progress=watch)
                return MEASURED * tokenizer.batch_size / watch.seconds, ""
            run = _short(task.run)
            if run.method.host == "beit" and study.tokenizer is None:
                run = replace(run, method=replace(run.method, tokenizer=str(_untrained(study, task, folder))))
            if task.row.keep is None:
                pretrain(run, folder, watch)
            else:
                device = use_device(run.train.device)
                predictor = initial_model(replace(run, method=MethodConfig())).to(device)
                Supervised(run, folder, study.val, task.row.keep, predictor, device).fit(watch)
        except (UserError, TrainingError) as error:
            return None, str(error)
    return MEASURED * run.batch_size / watch.seconds, ""


def _short(run: RunConfig) -> RunConfig:
    """The run, but a few steps long and with the teacher at work from the first."""
    alpha = max(run.method.alpha_start, run.method.alpha_end)
    return replace(run, steps=WARM_UP + MEASURED, epochs=None, method=replace(run.method, alpha_start=alpha))


def _untrained(study: Study, task: Task, folder: Path) -> Path:
    """A tokenizer's file."""
    run, out = tokenizer_run(study, task), folder / "tokenizer.safetensors"
    write(
        out, initial_tokenizer(run), run, Quality(images=0, error=1.0, used=0, entropy=0.0), [], Image.new("L", (1, 1))
    )
    return out


class _Stopwatch:
    """Times the steps after the first few."""

    def start(self, step: int, total: int, batch_size: int) -> None:
        self.steps, self.began, self.seconds = 0, 0.0, 0.0

    def advance(self) -> None:
        self.steps += 1
        if self.steps in (WARM_UP, WARM_UP + MEASURED) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.steps == WARM_UP:
            self.began = time.monotonic()
        if self.steps == WARM_UP + MEASURED:
            self.seconds = time.monotonic() - self.began

    def metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
