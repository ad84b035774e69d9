"""Response to steps that are NaN or infinite: report and dump them, go back to a checkpoint, or stop."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any

from hardpatch.errors import TrainingError
from hardpatch.files import remove
from hardpatch.processes import on_first
from hardpatch.train import checkpoint
from hardpatch.train.bad_steps import WINDOW
from hardpatch.train.device import autocast_dtype
from hardpatch.train.dumps import dump_of, write_dump
from hardpatch.train.manifest import damage

LINEAR = "linear --protocol paper"
VERBS = {"linear": LINEAR, **{verb: verb for verb in ("pretrain", "finetune", "segment", "detect", "tokenizer")}}
"""Verbs that take ``--resume`` and ``--lr_factor``, as they are written."""

log = logging.getLogger("hardpatch")


class Diverged(RuntimeError):  # noqa: N818 - not an error until nothing is left to try
    """A training that has diverged. The message says at which steps."""


def report_bad_steps(job: Any) -> None:
    """Report the steps that were skipped since the last call, and dump the first of them. All processes must call it.

    Raises:
        Diverged: if there were too many.
    """
    skipping = job.state.bad_steps
    found = skipping.count()
    too_many = skipping.too_many(job.step)
    if not found:
        return
    limit, count = skipping.settings.bad_steps, len(skipping.window)
    numbers = ", ".join(str(watched.step) for watched in found)
    steps = f"step {numbers}: its" if len(found) == 1 else f"steps {numbers}: their"
    log.warning(
        "%s loss or gradient is NaN or infinite, and no weight was changed; skipped so far of the last %d steps: %d, "
        "the limit is %d",
        *(steps, WINDOW, count, limit),
    )
    if found[0].step - 1 not in skipping.window:  # the weights are still those of the step before
        dump = write_dump(job, found[0])
        if dump is not None:
            log.info("%s names the module that made it", replay_command(dump))
    if too_many:
        dump = dump_of(job.folder, skipping.window)
        which = f"; {replay_command(dump)} names the module that made it" if dump else ""
        raise Diverged(
            f"the loss or a gradient became NaN or infinite in {count} of the last {WINDOW} steps, up to step "
            f"{found[-1].step}, the limit is {limit}; these steps changed no weight, and nothing of them was "
            f"saved{which}"
        )


def replay_command(dump: Path) -> str:
    """Return the command that replays a dump."""
    return f"hardpatch replay {shlex.quote(str(dump))}"


def go_back(job: Any, divergence: Diverged) -> None:
    """Go back to the last good checkpoint with a lower learning rate, if the settings say so. All processes call it.

    If the run went back to that checkpoint before and has not saved another one since, it takes the one before it.

    Raises:
        TrainingError: if the training is to stop; the message has a command to go on.
    """
    skipping = job.state.bad_steps
    settings, skipped, rollbacks = skipping.settings, skipping.total, skipping.rollbacks + 1
    if settings.on_divergence == "stop" or rollbacks > settings.max_rollbacks:
        raise TrainingError(f"{divergence}. {_way_out(job)}")
    name = on_first(lambda: _last_good(job.folder, skipping.rolled_back_to))
    if name is None:
        raise TrainingError(f"{divergence}; there is no checkpoint to go back to. {_way_out(job)}")
    job.restore(job.folder / "checkpoints" / name)
    skipping.forget()
    skipping.skipped, skipping.rollbacks, skipping.rolled_back_to = skipped, rollbacks, job.step
    log.warning(
        "%s. Back to %s with %g times the learning rate (rollback %d of %d)",
        *(divergence, name, skipping.lr_factor, rollbacks, settings.max_rollbacks),
    )
    job.save()  # a run that is killed from here on knows of the lower rate
    if (error := job.state.writer.failure_anywhere()) is not None:
        log.warning("%s cannot be written with the lower rate: %s", name, error.strerror)


def _last_good(folder: Path, used: int | None) -> str | None:
    """Return the name of the newest checkpoint that is whole, or of the one before it if that is ``used`` already."""
    whole = (path for path in reversed(checkpoint.checkpoints(folder / "checkpoints")) if damage(path) is None)
    newest = next(whole, None)
    if newest is None:
        return None
    before = next(whole, None) if checkpoint.step_of(newest) == used else None
    if before is None:
        return newest.name
    aside = newest.with_name(f"diverged_{newest.name}")
    remove(aside)
    newest.rename(aside)
    log.warning("%s led to a divergence twice; it is now %s", newest, aside.name)
    return before.name


def _way_out(job: Any) -> str:
    """Return a command that goes on with a lower learning rate, as it can be typed."""
    settings = job.state.bad_steps.settings
    factor = f"{settings.lr_factor * settings.rollback_lr:.6g}"
    saved = on_first(lambda: getattr(checkpoint.newest(job.folder), "name", None))
    start = "To start again" if saved is None else f"To go on from {saved}"
    verb = on_first(lambda: _verb(job.folder))
    if verb is None:
        return f"{start}, try a learning rate {settings.rollback_lr:g} times as high"
    precision = "" if autocast_dtype(job.state.fabric) is None else "; if it comes back, add --precision fp32"
    by_itself = "; --on_divergence rollback does so by itself" if settings.on_divergence == "stop" else ""
    return (
        f"{start} with {factor} times the learning rate: hardpatch {verb} --resume --out "
        f"{shlex.quote(str(job.folder))} --lr_factor {factor}{precision}{by_itself}"
    )


def _verb(folder: Path) -> str | None:
    """Return the verb that made a run, as it is written; None for one that does not take ``--lr_factor``."""
    try:
        command = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["command"]
        return VERBS.get(shlex.split(command)[1])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
