"""One line on a data set: what a verb works on, and what it leaves out."""

from collections import Counter
from pathlib import PurePath

from hardpatch.data.sources import Source

NAMED = 3
"""File names that a line shows."""


def summarize(source: Source) -> str:
    """Return "N images, K classes, left out M (why)" for a source; classes only where the images are labeled."""
    parts = [f"{len(source)} images"]
    if source.classes is not None:
        parts.append(f"{len(source.classes)} classes")
    skipped = source.skipped
    if skipped:
        kinds = Counter(PurePath(name).suffix.lower() or "no suffix" for name in skipped)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(NAMED))
        parts.append(f"left out {len(skipped)} files that are not images ({shown}; the first: {skipped[0]})")
    return ", ".join(parts)
