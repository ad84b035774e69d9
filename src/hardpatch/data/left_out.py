"""Entries that a data set holds and a source does not read, counted by reason."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from hardpatch.printable import printable

NOT_IMAGES = "files that are not images"
HIDDEN = "hidden files"
LINKS = "links that lead nowhere"
KINDS = 3
"""Suffixes that a line names."""


@dataclass(frozen=True)
class LeftOut:
    """Entries of a data set that are not read, for one reason."""

    reason: str
    """what they are, in the plural"""
    count: int
    first: str
    """name of the first"""
    kinds: str = ""
    """how many there are of each kind"""

    def __str__(self) -> str:
        kinds = f"{self.kinds}; " if self.kinds else ""
        return f"{self.count} {self.reason} ({kinds}the first: {printable(self.first)})"


def left_out(reason: str, names: Sequence[str], kinds: bool = False) -> tuple[LeftOut, ...]:
    """Return one entry for these names, or none if there are none; `kinds` also counts their suffixes."""
    if not names:
        return ()
    counts = Counter(PurePath(name).suffix.lower() or "no suffix" for name in names) if kinds else Counter[str]()
    return (LeftOut(reason, len(names), names[0], most_frequent(counts)),)


def most_frequent(counts: "Counter[str]") -> str:
    """Return how many there are of the most frequent suffixes."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(KINDS) if count)


def joined(entries: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Bring the entries of several sources together, one for each reason."""
    together: dict[str, LeftOut] = {}
    for entry in entries:
        before = together.get(entry.reason)
        if before is not None:
            kinds = ", ".join(filter(None, (before.kinds, entry.kinds)))
            entry = replace(before, count=before.count + entry.count, kinds=kinds)
        together[entry.reason] = entry
    return tuple(together.values())


def counts(entries: Iterable[LeftOut], undecodable: int, prefix: str = "") -> dict[str, int]:
    """Return the number of files that were left out, by reason, for a verb's result."""
    by_reason = {"not images": 0} | {
        "not images" if entry.reason == NOT_IMAGES else entry.reason: entry.count for entry in entries
    }
    return {f"{prefix}{reason}": count for reason, count in {**by_reason, "undecodable": undecodable}.items()}
