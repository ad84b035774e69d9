"""When a training logs, saves and evaluates."""

import math
import time
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from hardpatch.train.settings import TrainingSettings


class Due(NamedTuple):
    """Actions that are due after a step."""

    log: bool
    save: bool
    evaluate: bool


@dataclass
class Cadence:
    """Intervals between log lines, checkpoints and evaluations.

    Args:
        total: optimizer steps of the run.
        log_every: steps between two lines of metrics.
        checkpoint_minutes: minutes between two checkpoints.
        checkpoint_steps: steps between two checkpoints, in addition to those by time.
        evaluate_every: steps between two evaluations, not necessarily a whole number; None for none during training.
        evaluate_at_end: evaluate after the last step in any case.
        evaluate_at: further steps after which to evaluate; 0 is before the first step.
        keep_every: steps between two checkpoints that are kept for good.
    """

    total: int
    log_every: int
    checkpoint_minutes: float
    checkpoint_steps: int | None = None
    evaluate_every: float | None = None
    evaluate_at_end: bool = True
    evaluate_at: Container[int] = ()
    keep_every: int | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    def due(self, step: int, *, save: bool = False) -> Due:
        """Return what is due after optimizer step number ``step``, counted from 1; a checkpoint also if ``save``.

        Each checkpoint comes with a line of metrics, and each evaluation with a checkpoint before it. The first lines
        come early, after steps 1, 2, 5, 10, 20 and so on, so that one need not wait for numbers.
        """
        save = save or step == self.total or step % (self.checkpoint_steps or self.total) == 0
        save = save or step % (self.keep_every or self.total) == 0
        evaluate = self.evaluates(step)
        log = step % self.log_every == 0 or (step < self.log_every and is_early(step))
        return Due(save or evaluate or log, save or evaluate, evaluate)

    def overdue(self) -> bool:
        """Return whether a checkpoint is due by the clock."""
        return time.monotonic() - self._saved_at >= 60 * self.checkpoint_minutes

    def evaluates(self, step: int) -> bool:
        """Return whether there is an evaluation after ``step``; 0 is before the first step."""
        at_end = self.evaluate_at_end and step == self.total
        return step in self.evaluate_at or (step > 0 and (at_end or self.completes_interval(step)))

    def completes_interval(self, step: int) -> bool:
        """Return whether ``step`` completes an interval of ``evaluate_every``."""
        return step > 0 and self._intervals(step) > self._intervals(step - 1)

    def saved(self) -> None:
        """Record that a checkpoint was written: the minutes to the next one count from now."""
        self._saved_at = time.monotonic()

    def _intervals(self, step: int) -> int:
        """Count the intervals between evaluations that ``step`` steps complete."""
        every = self.evaluate_every
        # The interval is rounded: 10 steps are three times 10 / 3 steps, although 10 // (10 / 3) is 2.
        return 0 if every is None else math.floor(step / every + 1e-9)


def cadence_of(run: TrainingSettings, total: int, images: int) -> Cadence:
    """Return the intervals of a training on labels: ``total`` steps on a set of ``images``."""
    return Cadence(
        total,
        run.log_every,
        run.checkpoint_minutes,
        run.checkpoint_steps,
        run.val_steps(images),
        keep_every=run.keep_every,
    )


def is_early(step: int) -> bool:
    """Return True for 1, 2 and 5, and these times 10, 100 and so on."""
    return str(step).rstrip("0") in ("1", "2", "5")
