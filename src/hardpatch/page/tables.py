"""Tables of the page: results, settings, environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from hardpatch.page.folder import RunFiles, text_of
from hardpatch.page.panels import LABELS
from hardpatch.printable import printable
from hardpatch.train.settings import FREE_TO_CHANGE

HEAD = ("verb", "run", "data", "images", "classes", "left_out", "version", "verdict", "weights", "step", "epoch")
"""Values of ``result.json`` that are no numbers of the result."""
FACTS = {"run": "began with", "seconds": "time"}
WORDS = {
    "top1": "top-1",
    "val_loss": "validation loss",
    "top5": "top-5",
    "best_top1": "best top-1",
    "miou": "mIoU",
    "iou": "IoU",
    "map": "mAP",
    "r2": "R²",
    "lr": "learning rate",
    "per_class": "Classes",
    "confusions": "Most frequent confusions",
}
ENVIRONMENT = ("command", "resumed_by", "changes", "base")
"""Values of ``environment.json`` that are told elsewhere on the page."""
MOST_ROWS = 2000
"""Rows of a table of lists; the rest is in ``result.json``."""


class Cell(NamedTuple):
    """One value."""

    text: str
    exact: str = ""
    """the number itself, if the text is rounded"""
    share: float | None = None
    """in [0, 1], drawn as a bar"""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a caption; the first cell of a row is its header."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def cell(value: object, *, bar: bool = False) -> Cell:
    """Return a value as a cell: a number has few digits, and all of them in ``exact``."""
    if value is None:
        return Cell("none")
    if isinstance(value, float):
        return Cell(f"{value:.4g}", repr(value), value if bar and 0 <= value <= 1 else None)
    if isinstance(value, int) and not isinstance(value, bool):
        return Cell(f"{value:,}" if abs(value) < 10**15 else str(value), str(value))
    return Cell(text_of(value))


def word(name: str) -> str:
    """Return the name of a value as the page writes it."""
    return WORDS.get(name) or LABELS.get(name) or printable(name).replace("_", " ")


def numbers_of(run: RunFiles) -> dict[str, Any]:
    """Return the numbers of a result by name: those of ``result.json``, and of a study's ``measurements.json``."""
    found: dict[str, Any] = {}
    sources = ({k: v for k, v in run.result.items() if k not in HEAD}, run.measurements.get("metrics"))
    for source in sources:
        for name, value in _flat(source):
            if _is_number(value):
                found.setdefault(name, value)
    return found


def _flat(values: object) -> list[tuple[str, Any]]:
    """Return the values of mappings within each other, two deep."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            prefix = "" if name == "metrics" else f"{name} "
            pairs += [(f"{prefix}{inner}", item) for inner, item in value.items() if f"{prefix}{inner}" not in HEAD]
        else:
            pairs.append((str(name), value))
    return pairs


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def result_tables(run: RunFiles) -> list[Table]:
    """Return the numbers of a result, and a table for each list in it, such as that of the classes."""
    tables = []
    if numbers := numbers_of(run):
        rows = tuple((Cell(word(name)), cell(value, bar=name in run.result)) for name, value in numbers.items())
        tables.append(Table("Numbers of the result", ("name", "value"), rows))
    for name, value in run.result.items():
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            tables.append(_list_table(word(name), value))
    return tables


def _list_table(caption: str, found: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(str(name) for row in found for name in row))
    rows = tuple(tuple(cell(row.get(name), bar=True) for name in columns) for row in found[:MOST_ROWS])
    left = len(found) - len(rows)
    note = f"{left:,} more rows are in result.json." if left else ""
    return Table(caption, tuple(map(word, columns)), rows, note)


FIRST = ("top1", "knn", "linear", "miou", "box AP", "mask AP")
"""Numbers that a table of several runs begins with, since it may be wider than the page."""


def results_side_by_side(runs: Sequence[RunFiles], names: Sequence[str]) -> Table | None:
    """Return the numbers of several runs, a row for each run; None if none of them has any."""
    found = [numbers_of(run) for run in runs]
    columns = list(dict.fromkeys(name for numbers in found for name in numbers if not name.startswith("check_")))
    columns = [name for name in columns if len({repr(numbers.get(name)) for numbers in found}) > 1 or len(found) == 1]
    if not columns:
        return None
    columns.sort(key=lambda name: name not in FIRST)  # the others stay in their order
    rows = tuple(
        (Cell(name), *(cell(numbers[column]) if column in numbers else Cell("") for column in columns))
        for name, numbers in zip(names, found, strict=True)
    )
    return Table("Results that differ, a row for each run", ("run", *map(word, columns)), rows)


def settings_side_by_side(runs: Sequence[RunFiles], names: Sequence[str]) -> Table:
    """Return the settings in which runs that have them differ, a column for each run."""
    settings = dict.fromkeys(name for run in runs for name in run.settings)
    rows = tuple(
        (Cell(name), *(cell(run.settings[name]) if name in run.settings else Cell("not a setting") for run in runs))
        for name in settings
        if len({repr(run.settings[name]) for run in runs if name in run.settings}) > 1
    )
    return Table("Settings that differ, a column for each run", ("setting", *names), rows)


def all_settings(run: RunFiles) -> Table:
    """Return every setting of a run."""
    rows = tuple((Cell(name), cell(value)) for name, value in run.settings.items())
    return Table("All settings", ("setting", "value"), rows)


def changed_settings(run: RunFiles) -> Table | None:
    """Return the settings in which a run differs from what it began with; None if that is not known.

    The recipe or the preset is in ``environment.json``; pre-training runs without are compared with the defaults.
    """
    base = run.environment.get("base")
    if isinstance(base, Mapping) and isinstance(base.get("settings"), Mapping):
        name, before = text_of(base.get("name")), base["settings"]
    elif "method.host" in run.settings:
        name, before = "the defaults", _defaults()
    else:
        return None
    free = ("train.", "data.workers", "data.max_bad_fraction", "extensions")
    rows = tuple(
        (Cell(key), cell(before.get(key)), cell(value))
        for key, value in run.settings.items()
        if key in before and before[key] != value and not key.startswith(free) and key not in FREE_TO_CHANGE
    )
    note = "" if rows else f"All settings are those of {name}."
    return Table(f"Settings that differ from {name}", ("setting", name, "this run"), rows, note)


def _defaults() -> dict[str, Any]:
    from hardpatch.configuration.config import to_dict
    from hardpatch.configuration.sections import RunConfig
    from hardpatch.yaml_text import flat

    return flat(to_dict(RunConfig()))


def facts(run: RunFiles) -> Table:
    """Return what was trained on what: data, images, length, time."""
    result = run.result
    values: dict[str, object] = {"kind": f"hardpatch {run.verb}", "step": run.step}
    for name in ("run", "data", "images", "classes", "left_out", "seconds"):
        value = None if name == "run" and run.verb == "pretrain" else result.get(name)  # it names itself
        if isinstance(value, Mapping):
            value = {word(str(key)): item for key, item in value.items() if item} or None
        if value is not None:
            values[FACTS.get(name, name)] = _duration(value) if name == "seconds" else value
    if not result:
        paths = {name: run.settings.get(name) for name in ("data.path", "run", "train", "val")}
        values |= {name: value for name, value in paths.items() if value is not None}
    rows = tuple((Cell(word(name)), cell(value)) for name, value in values.items())
    return Table("The run in short", ("fact", "value"), rows)


def _duration(seconds: object) -> object:
    """Return hours, minutes and seconds as text."""
    return str(timedelta(seconds=round(seconds))) if isinstance(seconds, int | float) else seconds


def environment_table(run: RunFiles) -> Table:
    """Return versions and hardware."""
    rows = tuple((Cell(word(k)), cell(v)) for k, v in run.environment.items() if k not in ENVIRONMENT)
    return Table("Versions and hardware", ("name", "value"), rows)


def series_table(run: RunFiles) -> Table:
    """Return first, last and extreme values of every metric."""
    rows = tuple(
        (Cell(word(name)), *map(cell, (found.points, found.first, found.last, found.lowest, found.highest)))
        for name, found in run.series.items()
    )
    return Table("Metrics", ("metric", "points", "first", "last", "lowest", "highest"), rows)
