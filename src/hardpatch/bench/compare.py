"""Training steps of several contenders in turns, and the table that comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from hardpatch.bench.apart import Apart
from hardpatch.bench.contenders import Contender, NotHereError, contender, noise_batch
from hardpatch.bench.flops import step_flops
from hardpatch.bench.timing import Lane, Spread, allocated, matrix_product, nominal_rate, open_lane, spread, take_turns
from hardpatch.pretrain.sections import RunConfig


@dataclass(frozen=True)
class Row:
    """What was found of one contender."""

    name: str
    missing: str | None = None
    """why it did not run"""
    seconds: tuple[float, ...] = ()
    """of a step, for each turn"""
    images_per_second: float = 0.0
    """at the median"""
    times_as_fast: dict[str, Spread] = field(default_factory=dict)
    """as the contender of that name; of neighboring turns"""
    peak_bytes: int | None = None
    """on the device at the most, None on a CPU"""
    flops: dict[str, float] | None = None
    """the least operations an image, by part; None where they are not counted"""
    share_of_product: Spread | None = None
    """arithmetic rate over that of a large matrix product, of neighboring turns"""
    share_of_nominal: float | None = None
    """over that of the device's data sheet (MFU)"""


class Report(NamedTuple):
    """A comparison."""

    rows: list[Row]
    product_rate: Spread
    """FLOP/s of a large matrix product"""


def compare(
    run: RunConfig,
    names: Sequence[str],
    fabric: Fabric,
    *,
    bases: Sequence[str],
    turns: int,
    steps: int = 1,
    apart: bool = False,
    told: Callable[[int, int], object] = lambda done, of: None,
) -> Report:
    """Time one optimizer step of each.

    Args:
        run: sizes, batch, precision; see :func:`~hardpatch.bench.contenders.contender`.
        names: of the contenders.
        fabric: the device.
        bases: names of those that the others are held against; those that are not there are left out.
        turns: of each contender.
        steps: of a turn, made a multiple of ``fast.teacher_every``; several let a device's queue fill as in training.
        apart: each in a process of its own, see :class:`~hardpatch.bench.apart.Apart`.
        told: hears of every round.

    Raises:
        UserError: for a name that is none.
    """
    device, precision = fabric.device, run.train.precision
    batch = noise_batch(run, device)
    lanes: dict[str, Lane] = {}
    made: dict[str, tuple[str, RunConfig]] = {}
    missing: dict[str, str] = {}
    elsewhere: list[Apart] = []
    for name in names:
        held = allocated(device)
        ready: Contender | Apart
        try:
            if apart:
                ready = Apart(name, run)
                elsewhere.append(ready)
            else:
                ready = contender(name, run, fabric, batch)
        except NotHereError as error:
            missing[name] = str(error)
            continue
        made[name] = ready.name, ready.run
        lanes[name] = open_lane(ready.step, device, held, steps)
        del ready  # what does not fit leaves its place to the next
    product, operations = matrix_product(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    yardstick = Lane(product)
    take_turns([*lanes.values(), yardstick], turns, device, told)
    for process in elsewhere:
        process.close()
    rates = [operations / seconds for seconds in yardstick.seconds]
    for name, lane in lanes.items():
        if lane.out_of_memory:
            missing[name] = "out of memory"
    timed = {name: lane.seconds for name, lane in lanes.items() if name not in missing}

    def row(name: str) -> Row:
        title, does = made.get(name, (name, run))
        if name in missing:
            return Row(title, missing=missing[name])
        seconds, flops = timed[name], step_flops(does)
        found = Row(
            title,
            seconds=tuple(seconds),
            images_per_second=run.batch_size / spread(seconds).middle,
            times_as_fast={
                base: spread([theirs / ours for theirs, ours in zip(timed[base], seconds, strict=True)])
                for base in bases
                if base in timed and base != name
            },
            peak_bytes=lanes[name].peak,
            flops=flops,
        )
        if flops is None:
            return found
        work, nominal = sum(flops.values()) * run.batch_size, nominal_rate(device, precision)
        return replace(
            found,
            share_of_product=spread([work / s / rate for s, rate in zip(seconds, rates, strict=True)]),
            share_of_nominal=None if nominal is None else work / spread(seconds).middle / nominal,
        )

    return Report([row(name) for name in names], spread(rates))


def markdown(report: Report, bases: Sequence[str]) -> str:
    """The comparison as a table; medians, and quartiles in brackets."""
    heads = ["", "ms a step", "images/s", *(f"times as fast as {base}" for base in bases)]
    heads += ["peak memory, GiB", "GFLOP an image", "of a matrix product's rate", "MFU"]
    table = []
    for row in report.rows:
        if row.missing is not None:
            table.append([row.name, row.missing])
            continue
        cells = [row.name, f"{spread([1e3 * s for s in row.seconds]):.1f}", f"{row.images_per_second:.0f}"]
        cells += [f"{row.times_as_fast[base]:.2f}" if base in row.times_as_fast else "" for base in bases]
        cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}")
        cells.append("" if row.flops is None else f"{sum(row.flops.values()) / 1e9:.3g}")
        cells.append("" if row.share_of_product is None else f"{row.share_of_product:.0%}")
        cells.append("" if row.share_of_nominal is None else f"{row.share_of_nominal:.0%}")
        table.append(cells)
    # a column in which nothing stands says nothing
    kept = [k for k, _ in enumerate(heads) if any(len(cells) > k and cells[k] for cells in table)]
    lines = [[heads[k] for k in kept], ["---" for _ in kept]]
    lines += [[cells[k] if len(cells) > k else "" for k in kept] for cells in table]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_json(report: Report) -> dict[str, Any]:
    """All of it, every turn's seconds too; spreads as [lower quartile, median, upper quartile]."""
    return {"product_flops_per_second": report.product_rate, "contenders": [asdict(row) for row in report.rows]}
