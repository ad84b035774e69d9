"""What a table of the paper consists of: its rows, as YAML files beside this module.

A row states the settings (dotted names of :mod:`hardpatch.pretrain.sections`) in which it differs, and the paper's
figures where they are known.
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
"""What may be measured of a row, and what it is called; all are top-1 accuracies."""

Keep = Literal["random", "easiest", "hardest", "all"]


@dataclass(frozen=True)
class Row:
    """One row."""

    name: str
    """As in the table; unique there."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the table's base, by dotted name."""
    paper: Mapping[str, float | None] = field(default_factory=dict)
    """The paper's figures in percent, by key of :data:`METRICS`; missing or None where it is not at hand."""
    default: bool = False
    """The setting that the paper goes on with."""
    length: float = 1.0
    """Times the schedule of the scale."""
    large: bool = False
    """With the larger encoder of the scale."""
    keep: Keep | None = None
    """Which patches a network under labels sees; None is pre-training."""

    @property
    def key(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9.]+", "_", self.name.lower()).strip("_")


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str
    title: str
    rows: tuple[Row, ...]
    source: str
    """Whence the paper's figures come, and what is not known."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all rows, by dotted name."""


def names() -> list[str]:
    """The tables that there are."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def read(name: str) -> Table:
    """The table of that name.

    Raises:
        UserError: if there is none.
    """
    known = names()
    if name not in known:
        raise UserError(f"TABLE: expected one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Table(name=name, **{**values, "rows": tuple(Row(**row) for row in values["rows"])})
