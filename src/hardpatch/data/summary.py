"""One line on a data set: what a verb works on, what was decided about it, and what it leaves out."""

import logging
from collections.abc import Sequence

from hardpatch.data.bands import as_read
from hardpatch.data.columns import Columns
from hardpatch.data.reading import RGB, Reading
from hardpatch.data.sources import OpenedSource, open_images
from hardpatch.printable import printable

log = logging.getLogger("hardpatch")


def open_described(
    images: str | Sequence[str],
    image_column: str | None = None,
    reading: Reading = RGB,
    label_column: str | None = None,
    argument: str = "IMAGES",
) -> OpenedSource:
    """Open the images of a verb that needs no labels as a model reads them, and log what they are."""
    files = open_images([images] if isinstance(images, str) else list(images), Columns(image_column, label_column))
    source = as_read(files, reading)
    log.info("%s: %s", argument, summarize(source))
    return source


def summarize(source: OpenedSource) -> str:
    """Return "N images, K classes, split train, left out M (why)" for a source; classes only where it has labels."""
    parts = [f"{len(source)} images"]
    if source.classes is not None:
        parts.append(f"{len(source.classes)} classes")
    elif source.unlabeled:
        parts.append(f"no labels ({source.unlabeled})")
    return printable(", ".join([*parts, *source.notes, *(f"left out {entry}" for entry in source.skipped)]))
