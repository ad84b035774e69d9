"""Files of ``anomalies``: the table, heat maps and README."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hardpatch import figures
from hardpatch.files import atomic_path, write_text_atomically
from hardpatch.measure.object_masks import MaskReader
from hardpatch.measure.score_files import file_name
from hardpatch.rank.areas import KINDS, Areas
from hardpatch.rank.normal import Floats, Normal, image_scores
from hardpatch.rank.parts import Parts
from hardpatch.rank.sheets import Cell, Pictures, write_sheet
from hardpatch.rank.table import name_of

PAIRS = 12
"""Images on the contact sheet, each with its heat map."""
COLUMNS = {
    "path": "name of the image",
    "index": "its position in the set, from 0; images that cannot be decoded leave gaps",
    "score": "the highest score of its patches",
    "share_of_normal": "share of the normal images with a lower score; those were measured on themselves",
    "median": "median of its patches' losses, in deviations from normal images: how hard it is as a whole",
    "loss": "mean loss of its patches",
    "defect": "true if its mask has a defect",
    "scores": "score of each patch, row by row: how much it stands out, see docs/rank.md",
    "rows": "patches from top to bottom",
    "columns": "patches from left to right",
}
TYPES = {
    "path": pa.string(),
    "index": pa.int64(),
    "defect": pa.bool_(),
    "scores": pa.list_(pa.float32()),
    "rows": pa.int32(),
    "columns": pa.int32(),
}
README = """# Anomalies in {images} images

| file | content |
|---|---|
| `anomalies.parquet` | a row for each image |
| `summary.json` | the numbers of the whole set, and how they were made |
| `heat_maps.png` | the images of the highest scores; all heat maps have one scale, from 0 to {high:.3g} |
| `heat_maps/` | picture and heat map of each of the {pictures} images of the highest scores |

Columns of `anomalies.parquet`:

| column | content |
|---|---|
{columns}
{areas}"""
AREAS = """
Areas under the ROC curve against the masks, of {defective} images with a defect:

| score | per pixel | per image |
|---|---|---|
{rows}
"""


class AnomalyFiles:
    """Table and pictures of the scores.

    Args:
        folder: of the files.
        normal: losses of normal images.
        normal_parts: losses of each normal image.
        parts: losses of each image.
        pictures: of the images.
        read_mask: of a defect; None without masks.
    """

    def __init__(
        self,
        folder: Path,
        normal: Normal,
        normal_parts: Parts,
        parts: Parts,
        pictures: Pictures,
        read_mask: MaskReader | None,
    ) -> None:
        self.folder, self.normal, self.parts, self.pictures, self.read_mask = folder, normal, parts, pictures, read_mask
        self.table, self.grid = folder / "anomalies.parquet", pictures.model.grid
        self.values: dict[str, Any] = {}
        self.scores = np.concatenate([image_scores(scores) for _, scores in self._scored(parts)])
        self.of_normal = np.sort(np.concatenate([image_scores(scores) for _, scores in self._scored(normal_parts)]))

    def write(self, pictures: int, areas: Areas | None) -> None:
        """Write all files, and keep :attr:`values` for the summary.

        Args:
            pictures: images with a heat map of their own, those of the highest scores.
            areas: for the README; None without masks.
        """
        high = float(max(np.quantile(self.of_normal, 0.99), np.quantile(self.scores, 0.9), 1e-6))
        self._write_table()
        chosen = np.argsort(-self.scores, kind="stable")[:pictures]
        self._draw(chosen.tolist(), high)
        names = [name for name in COLUMNS if name != "defect" or self.read_mask is not None]
        columns = "\n".join(f"| `{name}` | {COLUMNS[name]} |" for name in names)
        rows = {"images": len(self.scores), "high": high, "pictures": len(chosen), "columns": columns}
        write_text_atomically(self.folder / "README.md", README.format(**rows, areas=_table_of(areas)))
        above = int((self.scores > self.of_normal[-1]).sum())
        self.values = {"table": str(self.table), "pictures": len(chosen), "above_all_normal": above, "scale": high}

    def _scored(self, parts: Parts) -> Iterator[tuple[dict[str, Any], Floats]]:
        """Yield the rows and the scores of the patches, part by part."""
        for part in parts.read(["index", "loss"]):
            yield part, self.normal.scores(part["loss"])

    def _write_table(self) -> None:
        """Write the table part by part."""
        schema = pa.schema(
            [
                (name, TYPES.get(name, pa.float64()))
                for name in COLUMNS
                if name != "defect" or self.read_mask is not None
            ]
        )
        with atomic_path(self.table) as partial, pq.ParquetWriter(partial, schema) as file:
            for part, scores in self._scored(self.parts):
                highest, indices = image_scores(scores), part["index"].tolist()
                rows = {
                    "path": [name_of(self.pictures.source, index) for index in indices],
                    "index": indices,
                    "score": highest,
                    "share_of_normal": np.searchsorted(self.of_normal, highest) / len(self.of_normal),
                    "median": np.median(self.normal.deviations(part["loss"]), axis=1),
                    "loss": part["loss"].mean(1, dtype=np.float64),
                    "scores": list(scores.astype(np.float32)),
                    "rows": np.full(len(indices), self.grid[0]),
                    "columns": np.full(len(indices), self.grid[1]),
                }
                if self.read_mask is not None:
                    rows["defect"] = [bool(self.read_mask(index).any()) for index in indices]
                file.write_table(pa.table({name: rows[name] for name in schema.names}, schema=schema))

    def _draw(self, chosen: list[int], high: float) -> None:
        """Draw heat maps of some rows, and a sheet of the first of them."""
        if not chosen:
            return
        index = self.parts.column("index")
        maps = self._maps_of(set(chosen))
        cells: list[Cell] = []
        (self.folder / "heat_maps").mkdir(exist_ok=True)
        for place, row in enumerate(chosen, 1):
            i = int(index[row])
            picture = self.pictures.picture(i)
            heat = figures.heat_map(picture, maps[row], self.grid, limits=(0.0, high))
            name, panels = name_of(self.pictures.source, i), [picture, heat]
            if self.read_mask is not None:
                mask = np.repeat(self.read_mask(i)[..., None].astype(np.uint8) * 255, 3, axis=2)
                panels.append(np.asarray(Image.fromarray(mask).resize(picture.shape[1::-1], Image.Resampling.NEAREST)))
            with atomic_path(self.folder / "heat_maps" / f"{place:05d}-{file_name(name)}.png") as partial:
                Image.fromarray(np.concatenate(panels, axis=1)).save(partial)
            if place <= PAIRS:
                cells += [Cell(picture, name, ""), Cell(heat, f"{place}.  score {self.scores[row]:.3g}", "")]
        title = f"highest scores: {len(cells) // 2} of {len(self.scores)} images, colors from 0 to {high:.3g}"
        write_sheet(self.folder / "heat_maps.png", title, cells, paired=True)

    def _maps_of(self, rows: set[int]) -> dict[int, figures.Floats]:
        """Scores of the patches of some rows."""
        found: dict[int, figures.Floats] = {}
        start = 0
        for _, scores in self._scored(self.parts):
            found |= {start + k: scores[k].astype(np.float32) for k in range(len(scores)) if start + k in rows}
            start += len(scores)
        return found


def _table_of(areas: Areas | None) -> str:
    """Return the section of the README on areas under ROC curves."""
    if areas is None:
        return ""
    rows = []
    for name, words in KINDS.items():
        image = areas.image[name]
        rows.append(f"| {words} | {areas.pixel[name]:.3f} | {'-' if image is None else f'{image:.3f}'} |")
    return AREAS.format(defective=areas.defective, rows="\n".join(rows))
