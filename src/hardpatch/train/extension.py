"""Course of a training that was made longer or shorter: its progress and its learning rate at each step.

This module does not import torch, so that the command line starts quickly.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from hardpatch.errors import UserError, shown
from hardpatch.schedules import half_cosine

COOLING = 0.2
"""Share of the steps of an extension in which a rate that was held falls to that of the schedule's end."""
LEAST_HELD = 0.1
"""Smallest share of the peak learning rate that ``auto`` holds; below it the rate is warmed up again."""

Rate = Callable[[int, int], float]
"""Learning rate of the step after ``step`` of ``total``, of a training that is not extended."""
Values = Callable[[int, int], tuple[float, ...]]
"""Learning rate and all else that depends on the progress, likewise."""


class Extension(NamedTuple):
    """A change of the length of a run."""

    at: int
    """steps that were done"""
    planned: int
    """steps that the run was to have before"""
    total: int
    """steps that it has since then"""
    rate: Literal["same", "rewarm", "hold"]
    """learning rate from there on: of a run of ``total`` steps, warmed up again, or held and cooled"""

    def __str__(self) -> str:
        return f"after {self.at} of {self.planned} steps: {self.total} steps, {self.rate}"

    @classmethod
    def parse(cls, text: str) -> "Extension":
        """Read the text of an extension, as ``config.yaml`` has it.

        Raises:
            UserError: if it is none.
        """
        match = re.fullmatch(r"after (\d{1,12}) of (\d{1,12}) steps: (\d{1,12}) steps, (same|rewarm|hold)", text)
        at, planned, total = (int(part) for part in match.groups()[:3]) if match else (0, 0, 0)
        if match is None or not 0 <= at < total or at > planned:
            raise UserError(
                "extensions: expected lines as --resume writes them, such as 'after 10 of 10 steps: 20 steps, "
                f"rewarm', got {shown(repr(text))}"
            )
        return cls(at, planned, total, cast(Any, match[4]))


class Course:
    """Progress and learning rate of a run of ``total`` steps that was extended some times.

    Raises:
        UserError: if the extensions are not those of a run of ``total`` steps.
    """

    def __init__(self, total: int, extensions: Sequence[Extension] = ()) -> None:
        self.total, self.extensions = total, tuple(extensions)
        for before, after in zip(self.extensions, self.extensions[1:], strict=False):
            if (before.total, before.at) != (after.planned, min(before.at, after.at)):
                raise UserError(f"extensions: expected each to go on from the one before it, got '{before}', '{after}'")
        if self.extensions and self.extensions[-1].total != total:
            raise UserError(
                f"extensions: they are of a run of {self.extensions[-1].total} steps, this one has {total}; take its "
                "length, or leave them out"
            )

    def progress(self, step: int) -> float:
        """Return the share of the training that is done before ``step``, in [0, 1].

        An extension spreads what was left over the steps that are left, so that it never falls.
        """
        return self._progress(self._part(step), step)

    def rate(self, step: int, rate: Rate) -> float:
        """Return the learning rate of the step after ``step``."""
        return self._rate(self._part(step), step, rate)

    def _part(self, step: int) -> int:
        """Count the extensions that were made when ``step`` steps were done, or before."""
        return sum(extension.at <= step for extension in self.extensions)

    def _length(self, part: int) -> int:
        """Return the total of the training after a number of extensions."""
        if part:
            return self.extensions[part - 1].total
        return self.extensions[0].planned if self.extensions else self.total

    def _progress(self, part: int, step: int) -> float:
        if part == 0 or self.extensions[part - 1].rate == "same":
            return step / self._length(part)
        extension = self.extensions[part - 1]
        done = self._progress(part - 1, extension.at)
        return min(1.0, done + (1.0 - done) * (step - extension.at) / (extension.total - extension.at))

    def _rate(self, part: int, step: int, rate: Rate) -> float:
        if part == 0 or self.extensions[part - 1].rate == "same":
            return rate(step, self._length(part))
        at, _, total, how = self.extensions[part - 1]
        if how == "rewarm":
            return rate(step - at, total - at)
        held, end = self._rate(part - 1, at, rate), rate(total, total)
        share = (step - at) / (total - at)
        return held if end >= held else half_cosine(max(0.0, (share - 1 + COOLING) / COOLING), held, end)

    def extended(self, at: int, total: int, how: str, values: Values) -> tuple[Extension, ...]:
        """Return the extensions of this run if it has ``total`` steps from step ``at`` on.

        Args:
            at: steps that are done.
            total: steps of the whole run, more than ``at``.
            how: ``rewarm``, ``hold``, or ``auto``: hold a rate of a tenth of the peak or more that does not rise, and
                warm up any other again. None of them matters where all values so far are those of a run of ``total``.
            values: learning rate, and all else that the step depends on, of a training that is not extended.
        """
        kept = tuple(extension for extension in self.extensions if extension.at < at)
        before = Course(self._length(len(kept)), kept)
        if total == before.total:
            return kept
        plain = all(extension.rate == "same" for extension in kept)
        if plain and all(values(step, before.total) == values(step, total) for step in range(at)):
            return (*kept, Extension(at, before.total, total, "same")) if at else ()
        if how == "auto":
            how = "hold" if before._high(at, lambda step, length: values(step, length)[0]) else "rewarm"
        return (*kept, Extension(at, before.total, total, "hold" if how == "hold" else "rewarm"))

    def _high(self, at: int, rate: Rate) -> bool:
        """Return whether the rate at a step is worth holding: no longer rising, and no small part of the peak."""
        now, earlier = self.rate(at, rate), self.rate(max(0, at - 1), rate)
        length = self._length(0)
        peak = max(rate(length * k // 1000, length) for k in range(1001))
        return 0.0 < now <= earlier and now >= LEAST_HELD * peak

    def describe(self, rate: Rate) -> str:
        """Return a line about the last extension."""
        at, planned, total, how = self.extensions[-1]
        start = f"extended after step {at} of {planned} to {total} steps: "
        rest = "; all else goes on to its end" if self.progress(at) < 1 else "; all else stays as it was at the end"
        if how == "same":
            return f"{start}exactly as a run of {total} steps from the start, for no value depends on the length"
        if how == "rewarm":
            peak = max(self.rate(at + (total - at) * k // 1000, rate) for k in range(1000))
            return (
                f"{start}the learning rate, {self._rate(len(self.extensions) - 1, at, rate):.3g} there, is warmed up "
                f"again to {peak:.3g} and falls as in a run of {total - at} steps{rest}"
            )
        held, end = self._rate(len(self.extensions) - 1, at, rate), rate(total, total)
        cooling = at + round((1 - COOLING) * (total - at))
        falls = "" if end >= held else f" until step {cooling} and then falls to {end:.3g}"
        return f"{start}the learning rate is held at {held:.3g}{falls}{rest}"


@lru_cache(maxsize=64)
def course(total: int, extensions: tuple[str, ...]) -> Course:
    """Return the course of a run from the setting ``extensions``.

    Raises:
        UserError: if they are not those of a run of ``total`` steps.
    """
    return Course(total, [Extension.parse(text) for text in extensions])
