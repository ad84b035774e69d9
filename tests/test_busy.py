"""Threads that wait give way on a busy machine."""

import os
import subprocess
import sys

import pytest

from hardpatch import busy, cli


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in busy.THREADS_THAT_WAIT:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def set_load(monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))


def test_threads_give_way_on_a_busy_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    set_load(monkeypatch, 2 * busy.BUSY)
    busy.give_way()
    assert "GOMP_SPINCOUNT" not in os.environ
    set_load(monkeypatch, 2 * busy.BUSY + 0.1)
    busy.give_way()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("name", busy.THREADS_THAT_WAIT)
def test_what_the_user_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_load(monkeypatch, 9.0)
    monkeypatch.setenv(name, "ACTIVE")
    busy.give_way()
    assert {key: os.environ[key] for key in busy.THREADS_THAT_WAIT if key in os.environ} == {name: "ACTIVE"}


def test_the_command_line_does_so_a_call_in_python_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    set_load(monkeypatch, 9.0)
    cli.main(["--version"])
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setattr(sys, "argv", ["hardpatch", "--version"])
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_torch_is_not_loaded_before() -> None:
    code = "import hardpatch.cli, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
