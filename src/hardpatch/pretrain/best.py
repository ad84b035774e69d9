"""The best weights of a run that starts from existing ones, by a measure of its checks: ``RUN/best``."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardpatch.files import atomic_path, optional_file
from hardpatch.pretrain.facts import Facts
from hardpatch.train import checkpoint

FOLDER = "best"
MEASURES = {
    "knn": "check_knn_top1",
    "linear": "check_linear_top1",
    "loss": "check_loss",
    "rankme": "check_rankme",
}
"""Metrics of the checks by the names of ``init.keep_best``; the loss is better where it is lower."""
NAMES = {"knn": "k-NN", "linear": "linear probe", "loss": "the loss", "rankme": "RankMe"}


def measure_of(setting: str, row: Mapping[str, Any]) -> str | None:
    """Return the measure that decides, by the setting ``init.keep_best`` and the metrics of a check; None for none."""
    if setting == "auto":
        setting = "knn" if MEASURES["knn"] in row else "loss"
    return setting if MEASURES.get(setting) in row else None


def best_of(measure: str, checks: Sequence[Mapping[str, Any]], comparable_from: int = 0) -> Mapping[str, Any] | None:
    """Return the best of some checks, the first of equal ones; None if there is none.

    Args:
        measure: a name of :data:`MEASURES`.
        checks: in the order of their steps.
        comparable_from: step from which on losses can be compared.
    """
    name, sign = MEASURES[measure], -1 if measure == "loss" else 1
    first = comparable_from if measure == "loss" else 0
    known = [check for check in checks if name in check and check["step"] >= first]
    return max(known, key=lambda check: sign * check[name], default=None)


def is_best(measure: str, checks: Sequence[Mapping[str, Any]], comparable_from: int = 0) -> bool:
    """Return whether the last of some checks is the best of them."""
    found = best_of(measure, checks, comparable_from)
    return found is not None and found["step"] == checks[-1]["step"]


def describe(setting: str, checks: Sequence[Mapping[str, Any]], facts: Facts) -> str | None:
    """Tell which weights of a run were the best; None if no measure decides."""
    measure = measure_of(setting, checks[-1])
    found = None if measure is None else best_of(measure, checks, facts.comparable_from)
    if measure is None or found is None:
        return None
    value, last = found[MEASURES[measure]], checks[-1][MEASURES[measure]]
    if found["step"] == 0:
        return f"by {NAMES[measure]} the weights that it started from were the best, {value:.3f} (now {last:.3f})"
    if found["step"] == checks[-1]["step"]:
        return f"by {NAMES[measure]} the last weights are the best, {value:.3f}"
    return (
        f"by {NAMES[measure]} the weights of step {found['step']} were the best, {value:.3f} (now {last:.3f}); "
        f"they are in {facts.folder}/{FOLDER}"
    )


def keep(folder: Path, step: int) -> None:
    """Copy the weights of a checkpoint to ``best/`` of the run, atomically; a warning says if the disk is full."""
    source = folder / "checkpoints" / f"step_{step:08d}" / checkpoint.WEIGHTS
    target = folder / FOLDER / checkpoint.WEIGHTS
    with optional_file(target):
        target.parent.mkdir(exist_ok=True)
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)
