"""``result.json`` of a run folder: a head that all verbs share, then the results of the verb."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hardpatch import __version__
from hardpatch.data.names import path_text
from hardpatch.data.sources import Paths
from hardpatch.files import write_text_atomically

RESULT = "result.json"


class Verdict(NamedTuple):
    """Conclusion from the numbers of a run."""

    learned: Literal["yes", "barely", "no"]
    reasons: tuple[str, ...]
    """lines that say why"""

    def line(self) -> str:
        """Return the verdict as a line of text."""
        return f"learned: {self.learned}; {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``result.json``."""
        return {"learned": self.learned, "reasons": list(self.reasons)}


def write_result(
    folder: Path,
    verb: str,
    *,
    run: str,
    data: Mapping[str, Paths],
    images: Mapping[str, int],
    classes: int | None,
    left_out: Mapping[str, int],
    seconds: float,
    **results: Any,
) -> dict[str, Any]:
    """Write ``result.json``, completely or not at all, and return its content.

    Args:
        folder: of the run.
        verb: name on the command line.
        run: weights that it started from.
        data: paths of the data sets by role.
        images: number of images by role.
        classes: number of classes; None without labels.
        left_out: number of files or objects that were left out, by reason.
        seconds: duration.
        results: values of the verb itself.
    """
    result = head(verb, run=run, data=data, images=images, classes=classes, left_out=left_out, seconds=seconds)
    result |= results
    write_text_atomically(folder / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def head(
    verb: str,
    *,
    run: str,
    data: Mapping[str, Paths],
    images: Mapping[str, int],
    classes: int | None,
    left_out: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Return the values that every result begins with; arguments as in :func:`write_result`."""
    return {
        "verb": verb,
        "run": run,
        "data": {name: path_text(paths) for name, paths in data.items()},
        "images": dict(images),
        "classes": classes,
        "left_out": dict(left_out),
        "seconds": round(seconds, 1),
        "version": __version__,
    }
