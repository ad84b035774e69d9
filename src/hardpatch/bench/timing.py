"""Timing in alternating turns with quartiles, so that times are comparable on a machine with other load."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from hardpatch.train.device import synchronize

WARM_UP = 2
"""Turns that do not count: kernels are compiled and selected, the optimizer creates its state."""

NOMINAL_BF16 = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s from data sheets; the first key that is part of the device's name applies."""

RoundCallback = Callable[[int, int], object]
"""Called after each round with (rounds done, rounds)."""


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    lower: float
    median: float
    upper: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.lower:{spec}} to {self.upper:{spec}})"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least one value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass
class TimedStep:
    """Step and its measurements."""

    step: Callable[[], object]
    steps: int = 1
    """steps per turn"""
    seconds: list[float] = field(default_factory=list)
    """seconds per step, for each turn that counts"""
    resident: int = 0
    """bytes on the device that stay allocated between steps"""
    peak: int | None = None
    """peak of allocated bytes on the device, without those of other steps; None on a CPU"""
    out_of_memory: bool = False
    """takes no more turns"""

    def turn(self, device: torch.device) -> float:
        """Take the steps of a turn and wait for the device. Returns seconds per step."""
        start = time.perf_counter()
        try:
            for _ in range(self.steps):
                self.step()
        except torch.OutOfMemoryError:
            self.out_of_memory, self.step = True, lambda: None  # releases weights and gradients
        synchronize(device)
        return (time.perf_counter() - start) / self.steps


def first_turn(step: Callable[[], object], device: torch.device, allocated_before: int, steps: int = 1) -> TimedStep:
    """Take a first turn, and measure which memory stays allocated.

    Args:
        step: what is timed.
        device: where it runs.
        allocated_before: bytes on the device before the step was built.
        steps: per turn.
    """
    timed = TimedStep(step, steps)
    timed.turn(device)
    timed.resident = allocated(device) - allocated_before
    return timed


def take_turns(
    timed_steps: Sequence[TimedStep],
    turns: int,
    device: torch.device,
    progress: RoundCallback = lambda done, total: None,
) -> None:
    """Take ``turns`` turns of each step, in alternating direction (a b c, c b a, ...), after those for warm-up."""
    rounds = WARM_UP + turns
    for index in range(rounds):
        for timed in timed_steps if index % 2 == 0 else timed_steps[::-1]:
            if timed.out_of_memory:
                continue
            before = allocated(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = timed.turn(device)
            if index >= WARM_UP:
                timed.seconds.append(seconds)
                if device.type == "cuda":
                    peak = torch.cuda.max_memory_allocated(device) - before + timed.resident
                    timed.peak = max(peak, timed.peak or 0)
        progress(index + 1, rounds)


class MatrixProduct(NamedTuple):
    """Large matrix product, to measure the arithmetic rate that the device reaches."""

    step: Callable[[], object]
    flops: float
    """of one step"""


def matrix_product(device: torch.device, dtype: torch.dtype) -> MatrixProduct:
    """Build a matrix product of random square matrices."""
    side, repeats = (8192, 10) if device.type == "cuda" else (2048, 1)
    if device.type == "cpu" and dtype != torch.float32:
        side = 256  # without instructions for it a processor takes a minute for the large one
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def step() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return MatrixProduct(step, 2.0 * side**3 * repeats)


def nominal_rate(device: torch.device, precision: str) -> float | None:
    """FLOP/s from the data sheet of the device, None if unknown."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in NOMINAL_BF16.items() if part in name), None)


def device_name(device: torch.device) -> str:
    """Model name of a GPU, or of a CPU with its number of threads; else the type of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        cpu_info = Path("/proc/cpuinfo")
        lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return device.type


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 on other devices, which do not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
