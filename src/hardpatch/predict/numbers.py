"""Several labels, or numbers, for each image, as a table with a column for each of them."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardpatch.data.sources import Source
from hardpatch.predict.task import Predictions
from hardpatch.printable import printable

Write = Callable[[Sequence[Sequence[Any]]], None]
"""Adds rows: the path, then a number for each column."""


class NumberTable:
    """Table of the numbers that a network returns: probabilities of several labels, or targets of a regression.

    Args:
        source: the images.
        write: adds rows.
    """

    def __init__(self, source: Source, write: Write) -> None:
        self.source, self.write = source, write

    def add(self, predictions: Predictions) -> None:
        """Write a row for each image."""
        pairs = zip(predictions.indices, predictions.values, strict=True)
        self.write([[printable(self.source.name(index)), *value.probabilities.tolist()] for index, value in pairs])

    def summary(self) -> dict[str, Any]:
        """Return that nothing was compared with labels."""
        return {"labeled": 0, "top1": None, "top5": None}


@contextmanager
def writing_numbers(out: Path, source: Source, names: Sequence[str]) -> Iterator[NumberTable]:
    """Open a Parquet or CSV file of predictions, by its suffix.

    Args:
        out: the file.
        source: the images.
        names: of the columns.
    """
    if out.suffix.lower() == ".csv":
        with out.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", *names])

            def write_lines(rows: Sequence[Sequence[Any]]) -> None:
                table.writerows([row[0], *(f"{value:.7g}" for value in row[1:])] for row in rows)

            yield NumberTable(source, write_lines)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(out, schema) as parquet:

        def write_rows(rows: Sequence[Sequence[Any]]) -> None:
            values = [dict(zip(schema.names, row, strict=True)) for row in rows]
            parquet.write_table(pa.Table.from_pylist(values, schema=schema))

        yield NumberTable(source, write_rows)
