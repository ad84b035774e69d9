"""A simulated network between the files and the programs that read them, for measurements."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """A line with a delay of its own for each read, whose bandwidth all processes share."""

    latency: float
    """seconds that each read waits"""
    bandwidth: float
    """bytes a second; infinite for no limit"""
    free_at: Any
    """time at which the line is free, shared by all processes"""

    def wait(self, size: int) -> None:
        """Wait as long as a read of `size` bytes takes."""
        with self.free_at.get_lock():
            start = max(time.monotonic(), self.free_at.value)
            end = self.free_at.value = start + size / self.bandwidth
        time.sleep(max(0.0, end + self.latency - time.monotonic()))


_network: Network | None = None


@contextmanager
def simulated_network(latency: float, bandwidth: float) -> Iterator[None]:
    """Let every read of images in the block wait, in this process and in those that it forks.

    Args:
        latency: seconds for each read; reads of several processes wait at the same time.
        bandwidth: bytes a second of all processes together.
    """
    from multiprocessing import Value

    global _network
    _network = Network(latency, bandwidth, Value("d", 0.0)) if latency or bandwidth < float("inf") else None
    try:
        yield
    finally:
        _network = None


def was_read(size: int) -> None:
    """Note that `size` bytes were read at once: here a simulated network waits."""
    if _network is not None:
        _network.wait(size)
