"""Rendered sets whose labels are known: disks of three colors, their colors and their size as targets."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
SIDE = 32


def write_disks(folder: Path, count: int, seed: int) -> dict[str, list[Any]]:
    """Write PNGs of one disk for each color that an image has, on gray noise; returns the columns of a table.

    ``tags`` are the colors, ``red``, ``green`` and ``blue`` say whether it has them, ``area`` is the share of pixels of
    the disks in percent, ``left`` the column of the first disk's center in pixels.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    table: dict[str, list[Any]] = {name: [] for name in ("path", "tags", *COLORS, "area", "left")}
    for number in range(count):
        pixels = rng.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
        covered, left = np.zeros((SIDE, SIDE), dtype=bool), SIDE / 2
        tags = [name for name in COLORS if rng.random() < 0.5]
        for name in tags:
            radius, (y, x) = rng.uniform(4, 9), rng.uniform(8, SIDE - 8, 2)
            disk = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            pixels[disk], covered = COLORS[name], covered | disk
            left = x if name == tags[0] else left
        Image.fromarray(pixels).save(folder / f"{number}.png")
        values = {"path": f"{number}.png", "tags": tags, "area": 100 * float(covered.mean()), "left": float(left)}
        for name, value in {**values, **{name: int(name in tags) for name in COLORS}}.items():
            table[name].append(value)
    return table


def write_csv(path: Path, table: dict[str, list[Any]]) -> Path:
    """Write a table beside its images; lists become text with semicolons."""
    rows = zip(*table.values(), strict=True)
    fields = [[";".join(value) if isinstance(value, list) else str(value) for value in row] for row in rows]
    lines = [",".join(row) for row in [list(table), *fields]]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path: Path, table: dict[str, list[Any]]) -> Path:
    """Write a table beside its images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(table), path)
    return path
