"""Findings of a check: lines about a set of images."""

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["note", "warning", "refused"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str
    text: str
    """one line: how many, the first names, what `pretrain` does with them"""
    names: list[str] = field(default_factory=list)
    """all files, folders or classes that are meant"""
    level: Level = "note"
    """`refused` is what a training refuses; a `warning` may be a mistake"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": self.kind, "level": self.level, "text": self.text, "names": self.names}
