"""Cores that other programs want, too: how a machine counts as busy, and how waiting threads give way there."""

import os

BUSY = 0.7
"""Programs that want a core, for each core of the machine, from which on it is busy."""
THREADS_THAT_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables of the environment that say how the threads of GNU's OpenMP, which PyTorch computes with, wait."""


def load() -> float:
    """Return how many programs wanted a core in the last minute, on average; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def give_way() -> None:
    """Let threads that wait for each other leave their cores soon, if the machine is busy; call it before torch loads.

    By default they spin for about a millisecond, which makes a step of a small model on idle cores a fifth faster, and
    on cores that other programs want four to five times slower (docs/lab-notes.md). Results are the same. What
    the user set stays.
    """
    if load() > BUSY * (os.cpu_count() or 1) and not any(name in os.environ for name in THREADS_THAT_WAIT):
        os.environ["GOMP_SPINCOUNT"] = "1000"
