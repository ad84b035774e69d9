"""Tables as YAML files in ``tables/`` beside this module: the paper's, and a few of our own.

A row lists the settings that it changes (dotted names of :mod:`hardpatch.configuration.sections`), and the figures of
the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

from hardpatch.errors import UserError, did_you_mean, shown

FOLDER = resources.files("hardpatch") / "study" / "tables"

Measure = Literal["knn", "linear", "finetune", "detect", "segment", "segment_160k", "supervised", "speedup"]
"""One way to measure a run; some give several metrics."""

CHOOSABLE: tuple[Measure, ...] = ("knn", "linear", "finetune", "detect", "segment", "segment_160k")
"""Measurements that can be left out or added by name; those of Table D and the speedup belong to their tables."""


class Metric(NamedTuple):
    """A column of a table."""

    title: str
    measure: Measure
    large: bool = False
    """True for a column of the scale's larger encoder."""
    factor: float = 100.0
    """Factor by which our value is shown: fractions become percent."""


METRICS: dict[str, Metric] = {
    "speedup": Metric("speedup", "speedup", factor=1.0),
    "finetune": Metric("fine-tune", "finetune"),
    "finetune_large": Metric("fine-tune, larger", "finetune", large=True),
    "linear": Metric("linear", "linear"),
    "knn": Metric("k-NN", "knn"),
    "box_ap": Metric("AP box", "detect"),
    "mask_ap": Metric("AP mask", "detect"),
    "miou": Metric("mIoU", "segment"),
    "miou_160k": Metric("mIoU", "segment_160k"),
    "miou_160k_large": Metric("mIoU, larger", "segment_160k", large=True),
    "supervised": Metric("top-1, same patches", "supervised"),
    "whole": Metric("top-1, all patches", "supervised"),
}
"""Columns by key. ``miou`` is after 80k steps (Table 5), ``miou_160k`` after 160k (Table 7)."""

Keep = Literal["random", "easiest", "hardest", "all"]


@dataclass(frozen=True)
class StudyRow:
    """One row of a table."""

    name: str
    """Name in the table; unique there."""
    group: str = ""
    """Rows that are compared with each other; empty for those of a table without groups."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the table's base, by dotted name."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's figures by key of :data:`METRICS`: percent, and a ratio for ``speedup``."""
    default: bool = False
    """True for the setting that the paper uses elsewhere."""
    length: float = 1.0
    """Length of the training, as a multiple of the scale's."""
    decoder_width: float = 1.0
    """Width of the decoders, as a multiple of the scale's."""
    keep: Keep | None = None
    """Patches that a supervised network sees; None is pre-training."""
    scratch: bool = False
    """True for fine-tuning random weights, without pre-training."""
    cited: bool = False
    """True for a method that this package does not have: the row is the paper's and is not run."""
    ours: bool = False
    """True for a row that is not in the paper."""


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str
    title: str
    rows: tuple[StudyRow, ...]
    metrics: tuple[str, ...]
    """Columns, by key of :data:`METRICS`; those of the paper, for its tables."""
    note: str = ""
    """Footnote: slips of the print, and what differs here."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all rows, by dotted name."""

    @property
    def of_the_paper(self) -> bool:
        """True for a table of the paper."""
        return any(row.paper for row in self.rows)


def names() -> list[str]:
    """Return the names of all tables, in their order."""
    return sorted(
        (path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml")), key=order
    )


def order(name: str) -> tuple[bool, str]:
    """Return the key by which names of tables are sorted: the paper's first."""
    return not name.startswith("table"), name


def read(name: str) -> Table:
    """Read a table by its name.

    Raises:
        UserError: if there is no such table.
    """
    tables = names()
    if name not in tables:
        raise UserError(
            f"TABLE: expected all or one of {', '.join(tables)}, got {shown(repr(name))}{did_you_mean(name, tables)}"
        )
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    values["rows"], values["metrics"] = tuple(StudyRow(**row) for row in values["rows"]), tuple(values["metrics"])
    return Table(name=name, **values)
