"""A simulated network: every read waits, whatever the images lie in, and all processes share the line."""

import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from hardpatch.data import network, parquet
from hardpatch.data.network import simulated_network
from hardpatch.data.sources import open_source
from tests.data.small import png, write_parquet, write_png
from tests.data.test_archives import write

DELAY = 0.02


def seconds(path: Path, reads: int = 3) -> float:
    source = open_source(path)
    start = time.perf_counter()
    for _ in range(reads):
        assert source.encoded(0)
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.zip", "a.parquet"])
def test_every_read_waits(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    path = tmp_path / name
    if name == "a.png":
        write_png(path)
    elif name == "a.parquet":
        write_parquet(path, [png(0)])
    else:
        write(path, {"a.png": png(0)})
    reads = 1 if name == "a.parquet" else 3  # its row group is kept
    with simulated_network(DELAY, float("inf")):
        assert seconds(path) >= reads * DELAY
    assert network._network is None


def seconds_of_two(size: int) -> float:
    """Read in two processes at once."""
    start = time.perf_counter()
    processes = [get_context("fork").Process(target=network.was_read, args=(size,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.perf_counter() - start


def test_processes_share_the_bandwidth_and_not_the_delay() -> None:
    with simulated_network(0.0, 1e6):
        assert seconds_of_two(150_000) >= 0.3, "one after the other"
    with simulated_network(1.0, float("inf")):
        assert 1 <= seconds_of_two(150_000) < 1.9
