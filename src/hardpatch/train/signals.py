"""Signals that ask a training to save or to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAVING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGHUP") if hasattr(signal, name))  # not on Windows


@dataclass
class Requests:
    """Requests that came by signal since the training began."""

    stop: int = 0
    """the signal that asks the training to stop after its step, 0 for none"""
    save: bool = False
    """a checkpoint is asked for; training goes on"""


@contextmanager
def requests_by_signal() -> Iterator[Requests]:
    """Collect signals instead of dying of them, so that a step can end.

    SIGINT and SIGTERM ask to stop; the second of a kind has its usual effect. SIGUSR1 and SIGHUP (a terminal that goes
    away) ask for a checkpoint. Outside the main thread, where Python allows no handlers, nothing is collected.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def stop(number: int, frame: FrameType | None) -> None:
        requests.stop = number
        signal.signal(number, previous[number])

    def save(number: int, frame: FrameType | None) -> None:
        requests.save = True

    previous: dict[int, Any] = {number: signal.signal(number, stop) for number in STOPPING}
    previous |= {number: signal.signal(number, save) for number in SAVING}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
