"""A run folder as the page needs it: what its files say, and what is missing or damaged there."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardpatch.errors import UserError
from hardpatch.files import reason_of
from hardpatch.page.thin import Curve, thin
from hardpatch.printable import printable
from hardpatch.train.checkpoint import checkpoints, step_of
from hardpatch.train.metrics import read_metrics
from hardpatch.train.result import RESULT
from hardpatch.yaml_text import flat, read_settings

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.jsonl"
MEASUREMENTS, PLAN = "measurements.json", "plan.txt"
FILES = (CONFIG, ENVIRONMENT, METRICS)
"""A folder with one of these is taken for a run; other verbs write results elsewhere, too."""
POSITIONS = ("step", "epoch")
"""Names in a row of metrics that are no metrics."""


@dataclass(frozen=True)
class Series:
    """A metric over the steps of a run."""

    curve: Curve
    """thinned"""
    points: int
    """of the metric, before thinning"""
    first: float
    last: float
    lowest: float
    highest: float

    @property
    def thinned(self) -> bool:
        """True if points were left out."""
        return len(self.curve[0]) < self.points


@dataclass(frozen=True)
class RunFiles:
    """Content of a run folder."""

    folder: Path
    name: str
    """of the folder, as text"""
    verb: str
    settings: dict[str, Any]
    """by dotted name; empty if they cannot be read"""
    environment: dict[str, Any]
    result: dict[str, Any]
    """empty until the run is finished"""
    measurements: dict[str, Any]
    plan: str
    series: dict[str, Series]
    """by the name of the metric"""
    step: int
    """the last one that metrics.jsonl or a checkpoint has"""
    notes: list[str] = field(default_factory=list)
    """lines about what is missing or damaged"""

    @property
    def finished(self) -> bool:
        """True if it has a result."""
        return bool(self.result)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; files that are missing or damaged are named in ``notes``.

    Raises:
        UserError: if the folder is no run.
    """
    check_run(folder)
    notes: list[str] = []
    settings: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        try:
            settings = flat(read_settings(folder / CONFIG, "RUN"))
        except UserError as error:
            notes.append(f"The settings cannot be read. {printable(str(error))}")
    else:
        notes.append(f"There is no {CONFIG}: settings and kind of the run are unknown.")
    environment = _json(folder / ENVIRONMENT, notes, needed=True)
    result, measurements = _json(folder / RESULT, notes), _json(folder / MEASUREMENTS, notes)
    rows = _rows(folder, notes)
    saved = [step_of(path) for path in checkpoints(folder / "checkpoints")]
    step = max([row["step"] for row in rows] + saved, default=0)
    if not result:
        notes.append(f"There is no {RESULT}: the run is not finished, or was stopped. It is at step {step:,}.")
    verb = str(result.get("verb") or settings.get("verb") or ("pretrain" if "method.host" in settings else "unknown"))
    plan = ""
    if (folder / PLAN).is_file():
        plan = (folder / PLAN).read_text(encoding="utf-8", errors="replace")
    name = printable(folder.resolve().name)
    return RunFiles(
        *(folder, name, verb, settings, environment, result, measurements, plan),
        *(_series(rows), step, notes),
    )


def check_run(folder: Path) -> None:
    """Refuse a path that is no run folder.

    Raises:
        UserError: says what it is, and what to do.
    """
    if not folder.exists():
        raise UserError(f"RUN: expected a run folder, {folder} does not exist")
    if not folder.is_dir():
        raise UserError(f"RUN: expected a run folder, {folder} is a file")
    if any((folder / name).is_file() for name in FILES):
        return
    inside = [path.parent for pattern in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(f"{pattern}/{CONFIG}"))]
    if inside:
        shown = " ".join(map(str, inside[:3])) + (" ..." if len(inside) > 3 else "")
        raise UserError(f"RUN: {folder} is no run, but {len(inside)} are inside; name those: {shown}")
    raise UserError(f"RUN: expected a run folder, {folder} has none of {', '.join(FILES)}")


def _json(path: Path, notes: list[str], *, needed: bool = False) -> dict[str, Any]:
    """Read an object of a JSON file; what is wrong with the file becomes a note."""
    if not path.is_file():
        if needed:
            notes.append(f"There is no {path.name}.")
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {reason_of(error)}.")
        return {}
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is damaged: it is not JSON.")
        return {}
    if not isinstance(values, dict):
        notes.append(f"{path.name} is damaged: expected an object, got {type(values).__name__}.")
        return {}
    return values


def _rows(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        rows = read_metrics(folder / METRICS)
    except OSError as error:
        notes.append(f"{METRICS} cannot be read: {reason_of(error)}.")
        return []
    if not rows:
        notes.append(f"There are no metrics: {METRICS} is missing or empty, so there are no curves.")
    return rows


def _series(rows: list[dict[str, Any]]) -> dict[str, Series]:
    points: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name not in POSITIONS and (number := _number(value)) is not None:
                x, y = points.setdefault(name, ([], []))
                x.append(row["step"])
                y.append(number)
    return {
        name: Series(thin(x, y), len(y), y[0], y[-1], min(y), max(y)) for name, (x, y) in points.items() if len(y) > 0
    }


def _number(value: object) -> float | None:
    """Return a finite number, and None for all else that a damaged file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def text_of(value: object) -> str:
    """Return a setting or a result as text of one line."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(name))} {text_of(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)
