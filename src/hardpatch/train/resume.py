"""Changes that a resumed run may make: of its length, its learning rate, and of how it computes."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hardpatch.errors import UserError
from hardpatch.train import checkpoint
from hardpatch.train.extension import Extension, Rate, Values, course

LENGTH = ("epochs", "steps", "least_steps", "extensions")
"""Settings of the length; ``--epochs`` or ``--steps`` beside ``--resume`` changes them."""
PEAK = ("lr", "base_lr", "optim.lr", "optim.base_lr")
"""Settings of the peak learning rate, which a resumed run changes if they are named."""
MAY_CHANGE = (
    "with --resume may change: length (--epochs or --steps) and peak learning rate where they are named, place of the "
    "images, device, number of processes, precision, workers, log, checkpoints, checks"
)
"""Part of the message of a refusal; ``docs/resume.md`` has the table."""


class Start(NamedTuple):
    """Where a run to resume stands."""

    step: int
    """steps done"""
    images: int
    """in the training set; 0 if no step was done"""
    planned: int
    """steps of the whole run; 0 likewise"""


def start_of(folder: Path) -> Start:
    """Return where a run stands by its newest whole checkpoint.

    Raises:
        UserError: if all of its checkpoints are damaged.
    """
    newest = checkpoint.newest_whole(folder)
    if newest is None:
        return Start(0, 0, 0)
    metadata = checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
    return Start(checkpoint.step_of(newest), metadata.get("images") or 0, metadata.get("steps") or 0)


def named(names: Collection[str], extend: str) -> set[str]:
    """Return the settings that may change since the call names them; none if ``extend`` is ``no``."""
    if extend == "no":
        return set()
    length = LENGTH if {"epochs", "steps"} & set(names) else ()
    return {*length, *(name for name in PEAK if name in names)}


def extended(
    start: Start, before: tuple[str, ...], planned: int, total: int, how: str, values: Values
) -> tuple[str, ...]:
    """Return the setting ``extensions`` of a resumed run that now has ``total`` steps.

    Args:
        start: where the run stands.
        before: the setting so far.
        planned: steps that it had so far.
        total: steps that it shall have.
        how: the setting ``extend``.
        values: learning rate and whatever else depends on the progress, see :meth:`Course.extended`.

    Raises:
        UserError: if more steps are done than it shall have.
    """
    if total == planned:
        return before
    if start.step >= total:
        raise UserError(
            f"--resume: {start.step} steps are done, and with this length the run has {total}; expected more than "
            f"{start.step} steps, or leave --epochs and --steps out"
        )
    return tuple(map(str, course(planned, before).extended(start.step, total, how, values)))


def line_of(total: int, extensions: tuple[str, ...], rate: Rate) -> str | None:
    """Return a line about the last extension of a run, None if it has none."""
    return course(total, extensions).describe(rate) if extensions else None


def refuse_changes(folder: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to resume a run with other settings than it began with.

    Args:
        folder: of the run.
        changed: old and new value of each setting that differs, by name.

    Raises:
        UserError: names each of them, with both values, and what may change.
    """
    if changed:
        changes = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise UserError(
            f"--resume: {folder} was made with other settings: {changes}; take those, or another --out; {MAY_CHANGE}"
        )


def explained(was: Mapping[str, Any], now: Mapping[str, Any], step: int) -> set[str]:
    """Return settings in which ``config.yaml`` may differ from a checkpoint.

    They are the peak learning rate, and the length if the run was extended since then.

    Args:
        was: settings of the checkpoint.
        now: settings of the run.
        step: of the checkpoint.
    """
    earlier, later = (tuple(settings.get("extensions") or ()) for settings in (was, now))
    done = [[text for text in texts if Extension.parse(text).at < step] for texts in (earlier, later)]
    return {*PEAK, *(LENGTH if later != earlier and done[0] == done[1] else ())}


ValuesOf = Callable[[Any, int, int, int], tuple[float, ...]]
"""Learning rate, and whatever else depends on the progress, of a verb: from its settings, the number of its training
images, ``step`` and ``total``."""
