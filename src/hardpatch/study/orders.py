"""Pairs of rows that the paper orders, and whether our seeds see the same order."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from hardpatch.study.rows import METRICS, Table
from hardpatch.study.values import MeanStd, RowResult

ERRORS = 2.0
"""A difference counts from this many standard errors on."""

Verdict = Literal["same", "other", "no difference", "one seed"]

SEEN: tuple[Verdict, ...] = ("same", "other", "no difference")


class Pair(NamedTuple):
    """Two rows that the paper orders, by one of our metrics."""

    higher: str
    """Row that is higher in the paper."""
    lower: str
    paper_metric: str
    """Column in which the paper orders them: the one that we measured, or its first if it lacks that."""
    paper_difference: float
    """Points by which the paper's figures differ."""
    metric: str
    """Our column."""
    difference: float
    """Points by which ours differ, above 0 if in the paper's order."""
    standard_error: float | None
    """Standard error of our difference, in points; None with a single seed."""
    verdict: Verdict
    """The order that we see: the same, the other, or no difference of two standard errors."""


def pairs(table: Table, results: Sequence[RowResult]) -> list[Pair]:
    """Compare all pairs of a group of rows (all rows, in a table without groups) in each column that we measured."""
    found = []
    for first, second in itertools.combinations(results, 2):
        if first.row.group != second.row.group:
            continue
        for key in (key for key in METRICS if key in first.ours and key in second.ours and not METRICS[key].large):
            common = [name for name in table.metrics if name in first.row.paper and name in second.row.paper]
            if not common or key == "speedup":
                continue
            paper = key if key in common else next(name for name in common if name != "speedup")
            gap = first.row.paper[paper] - second.row.paper[paper]
            if gap == 0:
                continue
            high, low = (first, second) if gap > 0 else (second, first)
            difference, error = _difference(high.ours[key], low.ours[key])
            names = high.row.name, low.row.name
            verdict = _verdict(difference, error)
            found.append(Pair(*names, paper, abs(gap), key, difference, error, verdict))
    return found


def markdown(table: Table, results: Sequence[RowResult], level: str, *, seeds: int) -> list[str]:
    """Format the pairs as a table; no lines with one seed, or if the paper orders none that we measured."""
    found = pairs(table, results)
    if not found or seeds == 1:
        return []
    keys = list(dict.fromkeys(pair.metric for pair in found))
    titles = ["higher in the paper", "lower in the paper", "paper", *(METRICS[key].title for key in keys)]
    lines = [f"{level} Does the order hold?", ""]
    lines += [f"Differences in points, ours ± one standard error; from {ERRORS:g} of them on they count.", ""]
    lines += [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    rows = {(pair.higher, pair.lower): [other for other in found if other[:2] == pair[:2]] for pair in found}
    for (higher, lower), of_rows in rows.items():
        papers = {f"{METRICS[pair.paper_metric].title} +{pair.paper_difference:.2f}": None for pair in of_rows}
        cells = {pair.metric: _cell(pair) for pair in of_rows}
        lines.append(f"| {' | '.join([higher, lower, ', '.join(papers), *(cells.get(key, '') for key in keys)])} |")
    counts = [
        f"{METRICS[key].title}: "
        + ", ".join(
            f"{sum(pair.verdict == verdict for pair in found if pair.metric == key)} {verdict}" for verdict in SEEN
        )
        for key in keys
    ]
    return [*lines, "", f"{'; '.join(counts)}.", ""]


def _cell(pair: Pair) -> str:
    error = "" if pair.standard_error is None else f" ± {pair.standard_error:.2f}"
    return f"{pair.difference:+.2f}{error}: {pair.verdict}"


def _difference(high: MeanStd, low: MeanStd) -> tuple[float, float | None]:
    """Return the difference of two means and its standard error (Welch), as shown."""
    difference = high.factor * (high.mean - low.mean)
    if high.standard_error is None or low.standard_error is None:
        return difference, None
    return difference, high.factor * math.hypot(high.standard_error, low.standard_error)


def _verdict(difference: float, error: float | None) -> Verdict:
    if error is None:
        return "one seed"
    if abs(difference) <= ERRORS * error:
        return "no difference"
    return "same" if difference > 0 else "other"
