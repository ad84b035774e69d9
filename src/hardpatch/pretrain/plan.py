"""Plan of a training: settings chosen for a set, a machine and a time, with what each rests on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain.set_and_machine import Machine, SetFacts

ALWAYS = ("set", "machine", "images", "model", "length", "time")
"""Topics that are shown even if nothing was chosen."""
LONG = 24 * 3600.0
"""Seconds from which on a training is said to take days."""


@dataclass(frozen=True)
class Plan:
    """A training that :func:`hardpatch.pretrain` takes, and how it was chosen."""

    run: RunConfig
    """all settings"""
    facts: SetFacts
    machine: Machine
    seconds: float
    """expected duration"""
    images_per_second: float
    parameters: int
    """of encoder and decoders"""
    reasons: Mapping[str, str]
    """what each choice rests on, by topic"""

    @property
    def images_seen(self) -> int:
        """Images that the training sees, repeated ones counted again."""
        return self.steps * self.run.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.run.total_steps(self.facts.images - self.run.data.hold_out)

    def __str__(self) -> str:
        """Return the plan in about ten lines."""
        run, model, method, shape = self.run, self.run.model, self.run.method, self.run.encoder_shape
        (height, width), (rows, columns) = run.image_size, run.grid
        lines = {
            "set": self.facts.describe(),
            "machine": self.machine.describe(),
            "images": f"{height} x {width} px, {rows} x {columns} patches of {model.patch_size} px",
            "model": f"{shape['width']} wide, {shape['depth']} blocks, {self.parameters / 1e6:.1f} M parameters",
            "decoders": f"{model.decoder_width} wide, {model.decoder_depth} blocks",
            "mining": f"{method.mask_ratio:.0%} of the patches masked",
            "teacher": f"momentum {method.momentum_start:g} to {method.momentum_end:g}",
            "batch": f"{run.batch_size} images",
            "rate": f"{run.peak_lr:.2g} at its peak",
            "held out": f"{run.data.hold_out} images",
            "loading": "",
            "length": f"{self.steps:,} steps, {self.images_seen:,} images",
            "rules": "",
            "time": f"{duration(self.seconds)} at {self.images_per_second:,.0f} images/s, measured here",
        }
        shown = {topic: text for topic, text in lines.items() if topic in self.reasons or topic in ALWAYS}
        return "\n".join(
            f"{topic:<9} " + "; ".join(part for part in (text, self.reasons.get(topic, "")) if part)
            for topic, text in shown.items()
        )

    def announcement(self) -> str:
        """Return how long the training takes in one line, and the way out if that is days."""
        line = (
            f"about {duration(self.seconds)} on this machine: {self.images_seen:,} images at "
            f"{self.images_per_second:,.1f} images/s, measured"
        )
        if self.seconds < LONG:
            return line
        return (
            f"{line}. For less: --hours H takes as many steps as fit in; --hours H without --recipe chooses a model "
            "that learns in that time (hardpatch plan shows it)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        return {
            "seconds": round(self.seconds),
            "images_per_second": round(self.images_per_second, 1),
            "images_seen": self.images_seen,
            "parameters": self.parameters,
            "set": asdict(self.facts),
            "machine": asdict(self.machine),
            "reasons": dict(self.reasons),
            "config": config.to_dict(self.run),
        }


def duration(seconds: float) -> str:
    """Return a duration in words, such as "1 h 40 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 100 else f"{days:.0f} days" if days < 1000 else f"{days / 365:.0f} years"


def short(count: float) -> str:
    """Return a large number in two digits, such as "1.3 M"."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f} {unit}"
    return f"{count:.0f}"
