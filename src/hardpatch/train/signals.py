"""Signals that make a training save a checkpoint and stop."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")
    if hasattr(signal, name)  # Windows lacks some
)
"""Signals on which a training saves and stops."""
REPEATED = 1.0
"""Seconds in which further signals count as the first one: `timeout` sends its signal twice, and a parent process that
got the signal of the whole group passes it on."""


@dataclass
class Requests:
    """Requests by signal since the training began."""

    stop: int = 0
    """signal that requests a stop after the current step, 0 for none"""


@contextmanager
def requests_by_signal(say: Callable[[], None]) -> Iterator[Requests]:
    """Turn signals into requests, so that the current step can be completed.

    Args:
        say: shows that at once; it may interrupt a print.

    Yields:
        The requests; the handlers change them.
    """
    requests = Requests()

    def stop(number: int) -> None:
        requests.stop = number
        say()

    with first_signal_calls(stop):
        yield requests


@contextmanager
def first_signal_calls(action: Callable[[int], None]) -> Iterator[None]:
    """Call ``action`` with the number of the first of the signals :data:`STOPPING`.

    Another one, :data:`REPEATED` seconds later or more, has its usual effect, which ends the process. SIGHUP stays
    ignored under `nohup`. Outside the main thread Python allows no signal handlers; signals then keep their usual
    effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            action(number)
        elif time.monotonic() - first >= REPEATED:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)

    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in STOPPING if not _ignored(number)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ignored(number: int) -> bool:
    """Return True for the signal that `nohup` makes a program ignore."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
