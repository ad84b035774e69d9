"""The values of a row over several seeds."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from hardpatch.study.rows import StudyRow


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation over seeds."""

    values: tuple[float, ...]
    """One value for each seed: a fraction, or a ratio."""
    factor: float = 100.0
    """Factor by which the values are shown."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for a single seed."""
        return None if self.std is None else self.std / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """Format with two decimals."""
        spread = "" if self.std is None else f" ± {self.factor * self.std:.2f}"
        return f"{self.factor * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class RowResult:
    """The measurements of a row."""

    row: StudyRow
    ours: Mapping[str, MeanStd]
    """Our values, by key of :data:`~hardpatch.study.rows.METRICS`."""
    missing: str
    """Reason why seeds are missing, in one line; empty if none is."""
    runs: tuple[str, ...] = ()
    """Folders of its runs, without the seed."""
