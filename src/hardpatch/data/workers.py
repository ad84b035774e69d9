"""Number of processes that load images."""

import os

from hardpatch.errors import UserError, shown
from hardpatch.processes import launched
from hardpatch.ranges import WORKERS

MAX_AUTO_WORKERS = 8
"""Processes at most where their number is "auto"."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_workers(workers: int | str) -> int:
    """Return the number of loader processes; "auto" is one less than the cores of this process, at most 8.

    Training processes that may all use all cores of the machine have equal shares of them.

    Raises UserError for anything but "auto" and an whole number of its range.
    """
    if workers == "auto":
        sharing = launched().local_world_size if cores() == os.cpu_count() else 1
        return max(0, min(cores() // sharing - 1, MAX_AUTO_WORKERS))
    if isinstance(workers, str) or workers not in WORKERS:
        number = workers if isinstance(workers, int) else 0
        raise UserError(f'data.workers: expected "auto" or {WORKERS.words(number)}, got {shown(workers)}')
    return workers
