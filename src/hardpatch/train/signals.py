"""Signals that make a training save a checkpoint or stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAVING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGHUP") if hasattr(signal, name))  # not on Windows


@dataclass
class Requests:
    """Requests by signal since the training began."""

    stop: int = 0
    """signal that requests a stop after the current step, 0 for none"""
    save: bool = False
    """True if a checkpoint is requested; the training continues"""


@contextmanager
def requests_by_signal() -> Iterator[Requests]:
    """Turn signals into requests, so that the current step can be completed.

    SIGINT and SIGTERM request a stop, which is said on the terminal at once; a second one of the same kind has its
    usual effect. SIGUSR1 and SIGHUP (the terminal was closed) request a checkpoint. Outside the main thread Python
    allows no signal handlers; signals then keep their usual effect.

    Yields:
        The requests; the handlers change them.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def stop(number: int, frame: FrameType | None) -> None:
        requests.stop = number
        with suppress(OSError):  # a closed terminal
            os.write(2, b"\nstopping after this step, with a checkpoint\n")  # print may be interrupted in a print
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
