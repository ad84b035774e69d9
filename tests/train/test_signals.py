"""Signals become requests while a training runs."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hardpatch.train import signals
from hardpatch.train.progress import Silent
from hardpatch.train.signals import STOPPING, Requests, requests_by_signal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ordinary handlers to begin with, since a process in the background ignores SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_signals() -> None:
    names = {signal.Signals(number).name for number in STOPPING}
    assert names == {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"}


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("number", STOPPING)
def test_a_first_signal_requests_a_stop_and_a_second_one_interrupts(
    number: int, second: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "REPEATED", 0.0)
    with requests_by_signal(Silent().stopping) as requests:
        assert requests == Requests(0)
        os.kill(os.getpid(), number)
        assert requests == Requests(number)
        assert capfd.readouterr().err == "\nstopping after this step, with a checkpoint\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


def test_one_signal_may_arrive_twice() -> None:
    """`timeout` sends its signal to its child, then to the process group of both."""
    with requests_by_signal(Silent().stopping) as requests:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert requests == Requests(signal.SIGTERM)


def test_a_hangup_stays_ignored_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with requests_by_signal(Silent().stopping) as requests:
        os.kill(os.getpid(), signal.SIGHUP)
        assert requests == Requests(0)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers_are_restored() -> None:
    with pytest.raises(RuntimeError, match="a failed step"), requests_by_signal(Silent().stopping):
        raise RuntimeError("a failed step")
    for number in STOPPING:
        assert signal.getsignal(number) is signal.default_int_handler


def test_outside_the_main_thread_handlers_stay() -> None:
    results = []

    def train() -> None:
        with requests_by_signal(Silent().stopping) as requests:
            results.append((requests, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert results == [(Requests(), signal.default_int_handler)]
