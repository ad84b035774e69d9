"""``result.json`` of a run folder: the same head for every verb, then what the verb found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardpatch import __version__

RESULT = "result.json"


def write_result(
    folder: Path,
    verb: str,
    *,
    run: str,
    data: Mapping[str, str],
    images: Mapping[str, int],
    classes: int | None,
    left_out: Mapping[str, int],
    seconds: float,
    **found: Any,
) -> dict[str, Any]:
    """Write ``result.json``, whole or not at all, and return what it holds.

    Args:
        folder: of the run.
        verb: of the command line.
        run: weights that it started from.
        data: paths of the data sets by role.
        images: number of images by role.
        classes: number of classes, None where there are no labels.
        left_out: how many files or objects were left out, by reason.
        seconds: that it took.
        found: what the verb found.
    """
    result = head(verb, run=run, data=data, images=images, classes=classes, left_out=left_out, seconds=seconds) | found
    partial = folder / f".{RESULT}.partial"
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RESULT)
    return result


def head(
    verb: str,
    *,
    run: str,
    data: Mapping[str, str],
    images: Mapping[str, int],
    classes: int | None,
    left_out: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Return the head that every result has, see :func:`write_result`."""
    return {
        "verb": verb,
        "run": run,
        "data": dict(data),
        "images": dict(images),
        "classes": classes,
        "left_out": dict(left_out),
        "seconds": round(seconds, 1),
        "version": __version__,
    }
