"""Signals become requests while a training runs."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hardpatch.train.signals import SAVING, STOPPING, Requests, requests_by_signal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ordinary handlers to begin with, since a process in the background ignores SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (*STOPPING, *SAVING)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_first_signal_requests_a_stop_and_a_second_one_interrupts(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with requests_by_signal() as requests:
        assert requests == Requests(0, False)
        os.kill(os.getpid(), number)
        assert requests == Requests(number, False)
        assert capfd.readouterr().err == "\nstopping after this step, with a checkpoint\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SAVING)
def test_a_checkpoint_can_be_requested_more_than_once(number: int) -> None:
    with requests_by_signal() as requests:
        for _ in range(2):
            os.kill(os.getpid(), number)
            assert requests == Requests(0, True)
            requests.save = False


def test_handlers_are_restored() -> None:
    with pytest.raises(RuntimeError, match="a failed step"), requests_by_signal():
        raise RuntimeError("a failed step")
    for number in (*STOPPING, *SAVING):
        assert signal.getsignal(number) is signal.default_int_handler


def test_outside_the_main_thread_handlers_stay() -> None:
    results = []

    def train() -> None:
        with requests_by_signal() as requests:
            results.append((requests, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert results == [(Requests(), signal.default_int_handler)]
