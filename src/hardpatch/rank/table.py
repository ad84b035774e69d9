"""The table of ``rank``: a row for each image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hardpatch.data.sources import Source
from hardpatch.files import atomic_path
from hardpatch.printable import printable

COLUMNS = {
    "path": "name of the image: its file, or the table or archive with the row or member",
    "index": "its position in the set, from 0; images that cannot be decoded leave gaps",
    "difficulty": "mean predicted difficulty of its patches",
    "loss": "mean reconstruction loss of its patches, over the fixed masks",
    "gap": "rank by loss minus rank by difficulty, as shares of the set from -1 to 1: above 0, harder than predicted",
    "rank": "place in the set by {by}, 1 is the highest",
    "nearest": "name of the most similar other image",
    "similarity": "similarity to it, the cosine of the vectors, at most 1",
    "outlier": "distance from the mean of the set in units of its spread; about 1 for a usual image",
    "duplicate_group": "number of its group of near-duplicates; null without any",
}
"""Columns of ``ranks.parquet``."""
TYPES = {
    "path": pa.string(),
    "nearest": pa.string(),
    "index": pa.int64(),
    "rank": pa.int64(),
    "duplicate_group": pa.int64(),
}
ROWS = 10_000
"""Rows that are written at a time."""

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Numbers of all images of a set that could be decoded, ``[n]`` each; None for what cannot be measured."""

    index: NDArray[np.int64]
    """positions in the source"""
    difficulty: Values | None
    loss: Values | None
    outlier: Values
    nearest: NDArray[np.int64] | None
    """row of the nearest neighbor"""
    similarity: NDArray[np.float32] | None
    duplicate_group: NDArray[np.int64] | None
    """0 for none"""

    @property
    def by(self) -> str:
        """Name of the column that images are ranked by."""
        return "loss" if self.loss is not None else "difficulty" if self.difficulty is not None else "outlier"

    @property
    def gap(self) -> Values | None:
        """Share of the set below the loss, minus that below the difficulty."""
        if self.loss is None or self.difficulty is None:
            return None
        return shares_below(self.loss) - shares_below(self.difficulty)

    def order(self, column: str) -> NDArray[np.int64]:
        """Rows by falling values of a column; equal ones as in the set."""
        return np.argsort(-getattr(self, column), kind="stable")

    @property
    def rank(self) -> NDArray[np.int64]:
        """Place of each image by :attr:`by`, from 1."""
        places = np.empty(len(self.index), dtype=np.int64)
        places[self.order(self.by)] = np.arange(1, len(places) + 1)
        return places

    def columns(self) -> list[str]:
        """Names of the columns that exist."""
        missing = {
            name for name in ("difficulty", "loss", "gap", "nearest", "similarity") if getattr(self, name) is None
        }
        if self.duplicate_group is None:
            missing.add("duplicate_group")
        return [name for name in COLUMNS if name not in missing]


def shares_below(values: Values) -> Values:
    """Share of the set with a lower value, from 0 to 1; the mean of the places where values are equal."""
    from scipy.stats import rankdata

    places: Values = rankdata(values) - 1
    return places / max(1, len(values) - 1)


def write_table(path: Path, ranking: Ranking, source: Source) -> None:
    """Write the table, completely or not at all."""
    names = ranking.columns()
    schema = pa.schema([(name, TYPES.get(name, pa.float64())) for name in names])
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema) as file:
        for rows in _rows(ranking, names, source):
            file.write_table(pa.table(rows, schema=schema))


def _rows(ranking: Ranking, names: list[str], source: Source) -> Iterator[Mapping[str, Any]]:
    """Yield some rows at a time."""
    whole = {name: getattr(ranking, name) for name in names if name not in ("path", "nearest")}
    for begin in range(0, len(ranking.index), ROWS):
        part = slice(begin, begin + ROWS)
        rows: dict[str, Any] = {name: values[part] for name, values in whole.items()}
        rows["path"] = [name_of(source, i) for i in ranking.index[part].tolist()]
        if ranking.nearest is not None:
            rows["nearest"] = [name_of(source, i) for i in ranking.index[ranking.nearest[part]].tolist()]
        if ranking.duplicate_group is not None:
            groups = ranking.duplicate_group[part]
            rows["duplicate_group"] = pa.array(groups, mask=groups == 0)
        yield {name: rows[name] for name in names}


def name_of(source: Source, i: int) -> str:
    """Return the name of an image as a line of valid Unicode, which Parquet needs."""
    return printable(source.name(i))
