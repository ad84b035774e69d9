"""Rows of the paper's tables, which are YAML files in ``paper/`` beside this module.

A row lists the settings that it changes (dotted names of :mod:`hardpatch.pretrain.sections`), and the paper's numbers
where they are known.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import yaml

from hardpatch.errors import UserError, did_you_mean

FOLDER = resources.files("hardpatch") / "study" / "paper"

METRICS = {
    "knn": "k-NN",
    "linear": "linear probe",
    "finetune": "fine-tuning",
    "supervised": "top-1, same patches",
    "whole": "top-1, all patches",
}
"""Metrics of a row and their column titles; all are top-1 accuracies."""

Keep = Literal["random", "easiest", "hardest", "all"]


@dataclass(frozen=True)
class StudyRow:
    """One row of a table."""

    name: str
    """Name in the table; unique there."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the table's base, by dotted name."""
    paper: Mapping[str, float | None] = field(default_factory=dict)
    """The paper's numbers in percent, by key of :data:`METRICS`; missing or None where they are not known."""
    default: bool = False
    """True for the setting that the paper uses elsewhere."""
    length: float = 1.0
    """Length of the training, as a multiple of the scale's."""
    large: bool = False
    """True for rows with the scale's larger encoder."""
    keep: Keep | None = None
    """Patches that a supervised network sees; None is pre-training."""

    @property
    def key(self) -> str:
        """Name of the row's folder."""
        return re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    name: str
    title: str
    rows: tuple[StudyRow, ...]
    source: str
    """Where the paper's numbers come from, and which are not known."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all rows, by dotted name."""


def names() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def read(name: str) -> Table:
    """Read a table by its name.

    Raises:
        UserError: if there is no such table.
    """
    tables = names()
    if name not in tables:
        raise UserError(f"TABLE: expected one of {', '.join(tables)}, got {name!r}{did_you_mean(name, tables)}")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Table(name=name, **{**values, "rows": tuple(StudyRow(**row) for row in values["rows"])})
