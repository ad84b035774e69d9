"""Files of ``rank`` beside the table: contact sheets, README and summary."""

from pathlib import Path
from typing import Any

import numpy as np

from hardpatch.files import write_text_atomically
from hardpatch.rank.neighbors import LEAST_CORRELATION, LEAST_SIMILARITY, Pairs
from hardpatch.rank.sheets import Cell, Pictures, write_sheet
from hardpatch.rank.table import COLUMNS, Ranking, Values, name_of

CELLS = 24
"""Images on a sheet at most."""
SHEETS = {
    "hardest.png": "the images of the highest {by}",
    "easiest.png": "the images of the lowest {by}",
    "harder_than_predicted.png": "the images of the highest gap",
    "strangest.png": "the images of the greatest outlier score",
    "duplicates.png": "the most similar pair of each group of near-duplicates",
}
README = """# Difficulty of {images} images

{lines}

| file | content |
|---|---|
| `ranks.parquet` | a row for each image |
| `summary.json` | the numbers of the whole set, and how they were made |
{sheets}

Columns of `ranks.parquet`:

| column | content |
|---|---|
{columns}
"""
DUPLICATES = (
    f"Near-duplicates are neighbors with a similarity of {LEAST_SIMILARITY} or more whose thumbnails of 8 x 8 pixels "
    f"correlate by {LEAST_CORRELATION} or more."
)


def write_sheets(folder: Path, ranking: Ranking, pairs: Pairs | None, pictures: Pictures) -> list[str]:
    """Write the contact sheets that there is something for. Returns their names."""
    source, by = pictures.source, ranking.by
    hardest = ranking.order(by)
    orders = {
        "hardest.png": (f"hardest by {by}", by, hardest),
        "easiest.png": (f"easiest by {by}", by, hardest[::-1]),
        "strangest.png": ("strangest", "outlier", ranking.order("outlier")),
    }
    if ranking.gap is not None:
        orders["harder_than_predicted.png"] = ("harder than predicted", "gap", ranking.order("gap"))
    if by == "outlier":
        del orders["hardest.png"], orders["easiest.png"]
    for name, (title, column, order) in orders.items():
        values = getattr(ranking, column)
        cells = []
        for place, row in enumerate(order[:CELLS].tolist(), 1):
            index = int(ranking.index[row])
            value = f"{place}.  {column} {values[row]:.3g}"
            cells.append(Cell(pictures.picture(index), name_of(source, index), value))
        write_sheet(folder / name, f"{title}: {len(cells)} of {len(ranking.index)} images", cells)
    if pairs is None or not len(pairs.rows):
        return list(orders)
    _write_pairs(folder / "duplicates.png", ranking, pairs, pictures)
    return [*orders, "duplicates.png"]


def _write_pairs(path: Path, ranking: Ranking, pairs: Pairs, pictures: Pictures) -> None:
    """Draw the most similar pair of each group."""
    assert ranking.duplicate_group is not None
    shown: dict[int, int] = {}
    for number, (row, _) in enumerate(pairs.rows.tolist()):
        shown.setdefault(int(ranking.duplicate_group[row]), number)
    cells = []
    for group, number in list(shown.items())[:CELLS]:
        for row in pairs.rows[number].tolist():
            index = int(ranking.index[row])
            value = f"group {group}, similarity {pairs.similarity[number]:.3f}"
            cells.append(Cell(pictures.picture(index), name_of(pictures.source, index), value))
    title = f"near-duplicates: a pair of each of {len(cells) // 2} of {len(shown)} groups"
    write_sheet(path, title, cells, paired=True)


def write_readme(folder: Path, ranking: Ranking, lines: list[str], sheets: list[str]) -> None:
    """Write ``README.md``, which explains the files and the columns."""
    by = ranking.by
    columns = "\n".join(f"| `{name}` | {COLUMNS[name].format(by=by)} |" for name in ranking.columns())
    pictures = "\n".join(f"| `{name}` | {SHEETS[name].format(by=by)} |" for name in sheets)
    said = [*lines, DUPLICATES] if ranking.duplicate_group is not None else lines
    text = README.format(
        images=len(ranking.index), lines="\n".join(f"- {line}" for line in said), columns=columns, sheets=pictures
    )
    write_text_atomically(folder / "README.md", text)


def summary_values(ranking: Ranking, pairs: Pairs | None) -> dict[str, Any]:
    """Return the numbers of the whole set, ready for JSON; ``pairs`` is None if there are no neighbors."""
    values: dict[str, Any] = {"ranked_by": ranking.by, "columns": ranking.columns()}
    for name in ("difficulty", "loss", "outlier"):
        column = getattr(ranking, name)
        if column is not None:
            values[name] = {"mean": float(column.mean()), "min": float(column.min()), "max": float(column.max())}
    if ranking.loss is not None and ranking.difficulty is not None:
        values["rank_correlation"] = rank_correlation(ranking.difficulty, ranking.loss)
    if pairs is not None and ranking.duplicate_group is not None:
        values["duplicates"] = {
            "pairs": len(pairs.rows),
            "groups": int(ranking.duplicate_group.max()),
            "images": int((ranking.duplicate_group > 0).sum()),
        }
    return values


def rank_correlation(one: Values, other: Values) -> float | None:
    """Spearman's correlation over the images; None if one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
