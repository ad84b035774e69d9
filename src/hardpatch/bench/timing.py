"""Times that can be compared on a machine that is not quiet: in turns, within one run, with their spread."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

WARM_UP = 2
"""Turns before those that count: kernels are compiled and chosen, the optimizer gets its state."""

NOMINAL_BF16 = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by the makers' data sheets; the first name that is part of the device's."""


class Spread(NamedTuple):
    """Lower quartile, median, upper quartile."""

    low: float
    middle: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.middle:{form}} ({self.low:{form}} to {self.high:{form}})"


def spread(values: Sequence[float]) -> Spread:
    """Quartiles; of one value, that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass
class Lane:
    """What runs in turns."""

    step: Callable[[], object]
    steps: int = 1
    """steps of a turn"""
    seconds: list[float] = field(default_factory=list)
    """of a step, for each turn that counts"""
    resident: int = 0
    """bytes on the device that stay between steps"""
    peak: int | None = None
    """bytes on the device at the most, without what the others hold"""
    out_of_memory: bool = False
    """it takes no more turns"""

    def turn(self, device: torch.device) -> float:
        """Take the steps of a turn and wait for the device: seconds of a step."""
        begin = time.perf_counter()
        try:
            for _ in range(self.steps):
                self.step()
        except torch.OutOfMemoryError:
            self.out_of_memory, self.step = True, lambda: None  # and with it go weights and gradients
        wait_for(device)
        return (time.perf_counter() - begin) / self.steps


def open_lane(step: Callable[[], object], device: torch.device, held: int, steps: int = 1) -> Lane:
    """Take a first turn, and note what stays on the device, which held so many bytes before the contender came."""
    lane = Lane(step, steps)
    lane.turn(device)
    lane.resident = allocated(device) - held
    return lane


def take_turns(
    lanes: Sequence[Lane], turns: int, device: torch.device, told: Callable[[int, int], object] = lambda done, of: None
) -> None:
    """Every lane in turn, ``turns`` times, there and back, so that none always comes after the same other.

    ``told`` hears of every round.
    """
    for turn in range(WARM_UP + turns):
        for lane in lanes if turn % 2 == 0 else lanes[::-1]:
            if lane.out_of_memory:
                continue
            before = allocated(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = lane.turn(device)
            if turn >= WARM_UP:
                lane.seconds.append(seconds)
                if device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(device) - before + lane.resident
                    lane.peak = max(peak, lane.peak or 0)
        told(turn + 1, WARM_UP + turns)


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A large product of matrices, and its FLOPs: the rate of arithmetic that the device reaches right now."""
    side, times = (8192, 10) if device.type == "cuda" else (2048, 1)
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def step() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return step, 2.0 * side**3 * times


def nominal_rate(device: torch.device, precision: str) -> float | None:
    """FLOP/s of the device's data sheet, where it is known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in NOMINAL_BF16.items() if part in name), None)


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        cores = Path("/proc/cpuinfo")
        lines = cores.read_text(encoding="utf-8").splitlines() if cores.is_file() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return device.type


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 elsewhere, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
