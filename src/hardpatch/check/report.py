"""A check as a table for the terminal."""

from collections.abc import Iterator, Mapping
from statistics import median_low

from hardpatch.check.run import Check
from hardpatch.data.reading import type_range
from hardpatch.printable import printable

SHOWN = 10
"""Broken files and duplicates that are shown; all are in the JSON."""
WIDTH = 13


def table(check: Check) -> str:
    """Return the lines of the table: what there is, the settings that fit, then what was found."""
    return "".join(f"{printable(line)}\n" for line in _lines(check))


def _lines(check: Check) -> Iterator[str]:
    for name, text in _rows(check):
        yield f"{name:<{WIDTH}} {text}"
    if check.statistics is not None:
        yield f"{'settings':<{WIDTH}} {' '.join(check.statistics.settings())}"
    for level in ("note", "warning", "refused"):
        for finding in check.findings:
            if finding.level != level:
                continue
            yield f"{level:<{WIDTH}} {finding.text}"
            if finding.kind.startswith(("broken", "duplicates")):
                yield from (f"{'':<{WIDTH}}   {name}" for name in finding.names[:SHOWN])
                if len(finding.names) > SHOWN:
                    yield f"{'':<{WIDTH}}   and {len(finding.names) - SHOWN} more, all of them in --json"
    count = sum(finding.level == "refused" for finding in check.findings)
    yield f"{check.path}: " + (
        f"a training would refuse this set, for {count} reasons" if count else "nothing is refused"
    )


def _rows(check: Check) -> Iterator[tuple[str, str]]:
    found, balance = check.found, check.balance
    yield "images", check.summary
    yield "readable", f"{found.survey.images} of {found.total}"
    if found.survey.images:
        yield "formats", _counts(found.formats)
        for name, sizes in (("height", found.heights), ("width", found.widths)):
            yield name, f"{min(sizes)} to {max(sizes)} pixels, median {median_low(sizes)}"
        yield "channels", ", ".join(f"{count} of {number}" for number, count in found.survey.channels.most_common())
    for dtype, extent in found.extents.items():
        low, high = type_range(dtype)
        of = "" if dtype == "float32" else f" of {low:g} to {high:g}"
        negative = f", {found.negative} values below 0" if extent.low < 0 else ""
        yield "depth", f"{extent.images} of {dtype}, values {extent.low:g} to {extent.high:g}{of}{negative}"
    if balance is not None and balance.filled():
        filled = balance.filled()
        least, most = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
        ratio = filled[most] / filled[least]
        text = f"smallest {least!r} with {filled[least]}, largest {most!r} with {filled[most]}, ratio {ratio:.3g}"
        yield "balance", text


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in ordered)
