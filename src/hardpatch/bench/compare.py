"""Comparison of the training steps of several contenders, and its table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric

from hardpatch.bench.contenders import UnavailableError, noise_batch, prepare_contender
from hardpatch.bench.flops import step_flops
from hardpatch.bench.separate_process import SeparateProcess
from hardpatch.bench.timing import (
    Quartiles,
    RoundCallback,
    TimedStep,
    allocated,
    first_turn,
    matrix_product,
    nominal_rate,
    quartiles,
    take_turns,
)
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.batch import Batch


@dataclass(frozen=True)
class ContenderResult:
    """Measurements of one contender."""

    name: str
    missing: str | None = None
    """reason why it did not run"""
    seconds: tuple[float, ...] = ()
    """per step, for each turn"""
    images_per_second: float = 0.0
    """batch size over median seconds"""
    speedup: dict[str, Quartiles] = field(default_factory=dict)
    """over each base, from neighboring turns"""
    peak_bytes: int | None = None
    """peak memory on the device, None on a CPU"""
    flops: dict[str, float] | None = None
    """FLOPs per image by part of the step, at least; None where they are not counted"""
    matrix_product_share: Quartiles | None = None
    """FLOP/s over those of a large matrix product, from neighboring turns"""
    mfu: float | None = None
    """FLOP/s over those of the device's data sheet"""


@dataclass(frozen=True)
class BenchResult:
    """Result of :func:`compare`."""

    contenders: list[ContenderResult]
    matrix_product_rate: Quartiles
    """FLOP/s of a large matrix product"""

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON; quartiles as [lower, median, upper]."""
        return asdict(self)

    def to_markdown(self, bases: Sequence[str]) -> str:
        """Return the comparison as a table of medians, with quartiles in parentheses."""
        titles = ["", "ms a step", "images/s", *(f"times as fast as {base}" for base in bases)]
        titles += ["peak memory, GiB", "GFLOP an image", "of a matrix product's rate", "MFU"]
        rows = [_cells(contender, bases) for contender in self.contenders]
        rows = [cells + [""] * (len(titles) - len(cells)) for cells in rows]
        columns = [k for k in range(len(titles)) if any(cells[k] for cells in rows)]  # without empty ones
        table = [[cells[k] for k in columns] for cells in (titles, *rows)]
        table.insert(1, ["---"] * len(columns))
        return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def _cells(contender: ContenderResult, bases: Sequence[str]) -> list[str]:
    if contender.missing is not None:
        return [contender.name, contender.missing]
    milliseconds = quartiles([1e3 * seconds for seconds in contender.seconds])
    cells = [contender.name, f"{milliseconds:.1f}", f"{contender.images_per_second:.0f}"]
    cells += [f"{contender.speedup[base]:.2f}" if base in contender.speedup else "" for base in bases]
    cells.append("" if contender.peak_bytes is None else f"{contender.peak_bytes / 2**30:.2f}")
    cells.append("" if contender.flops is None else f"{sum(contender.flops.values()) / 1e9:.3g}")
    cells.append("" if contender.matrix_product_share is None else f"{contender.matrix_product_share:.0%}")
    cells.append("" if contender.mfu is None else f"{contender.mfu:.0%}")
    return cells


def compare(
    run: RunConfig,
    names: Sequence[str],
    fabric: Fabric,
    *,
    bases: Sequence[str],
    turns: int,
    steps: int = 1,
    separate_processes: bool = False,
    progress: RoundCallback = lambda done, total: None,
) -> BenchResult:
    """Time optimizer steps of several contenders in turns.

    Args:
        run: sizes, batch size, precision; see :func:`~hardpatch.bench.contenders.prepare_contender`.
        names: of the contenders.
        fabric: the device.
        bases: names of the contenders that the others are compared with; those that cannot run are left out.
        turns: of each contender.
        steps: per turn; several fill a device's queue as in training.
        separate_processes: run each in a process of its own, see
            :class:`~hardpatch.bench.separate_process.SeparateProcess`.
        progress: called after each round with (rounds done, rounds).

    Raises:
        UserError: if there is no contender of a name.
    """
    device, precision = fabric.device, run.train.precision
    batch = noise_batch(run, device)
    results: dict[str, ContenderResult] = {}
    entries: dict[str, _Entry] = {}
    for name in names:
        try:
            entries[name] = _start(name, run, fabric, batch, steps, separate_processes)
        except UnavailableError as error:
            results[name] = ContenderResult(name, missing=str(error))
    product = matrix_product(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    timed_product = TimedStep(product.step)
    take_turns([*(entry.timed for entry in entries.values()), timed_product], turns, device, progress)
    for entry in entries.values():
        entry.close()
    rates = [product.flops / seconds for seconds in timed_product.seconds]
    seconds = {name: entry.timed.seconds for name, entry in entries.items() if not entry.timed.out_of_memory}
    for name, entry in entries.items():
        base_seconds = {base: seconds[base] for base in bases if base in seconds and base != name}
        results[name] = entry.result(base_seconds, rates, nominal_rate(device, precision))
    return BenchResult([results[name] for name in names], quartiles(rates))


@dataclass(frozen=True)
class _Entry:
    """Contender that is running."""

    title: str
    run: RunConfig
    timed: TimedStep
    process: SeparateProcess | None

    def close(self) -> None:
        """End the separate process, if there is one."""
        if self.process is not None:
            self.process.close()

    def result(
        self, base_seconds: dict[str, list[float]], rates: Sequence[float], nominal: float | None
    ) -> ContenderResult:
        """Compare with the bases, and with the ``rates`` of the matrix product in the same turns."""
        if self.timed.out_of_memory:
            return ContenderResult(self.title, missing="out of memory")
        seconds, flops = self.timed.seconds, step_flops(self.run)
        median = quartiles(seconds).median
        share = mfu = None
        if flops is not None:
            work = sum(flops.values()) * self.run.batch_size
            share = quartiles([work / s / rate for s, rate in zip(seconds, rates, strict=True)])
            mfu = None if nominal is None else work / median / nominal
        return ContenderResult(
            self.title,
            seconds=tuple(seconds),
            images_per_second=self.run.batch_size / median,
            speedup={
                base: quartiles([other / own for other, own in zip(others, seconds, strict=True)])
                for base, others in base_seconds.items()
            },
            peak_bytes=self.timed.peak,
            flops=flops,
            matrix_product_share=share,
            mfu=mfu,
        )


def _start(name: str, run: RunConfig, fabric: Fabric, batch: Batch, steps: int, separate_process: bool) -> _Entry:
    """Build a contender and take its first turn.

    Only ``timed.step`` refers to it afterwards, so that its memory is freed if it is out of memory.
    """
    before = allocated(fabric.device)
    process = SeparateProcess(name, run) if separate_process else None
    contender = process or prepare_contender(name, run, fabric, batch)
    timed = first_turn(contender.step, fabric.device, before, steps)
    return _Entry(contender.name, contender.run, timed, process)
