"""Pictures of a run folder, small enough for a page and part of it."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpatch.data.order import evenly_spread
from hardpatch.figures import CELLS
from hardpatch.page.folder import RunFiles
from hardpatch.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, CELL = 1100, 144
"""Longest side in pixels of a whole picture, and of a part of a contact sheet."""
STAGES, SHOWN = 5, 4
"""Points of a training, and images, of which parts are shown."""
MOST_PIXELS = 60_000_000
"""Pixels of a picture that is opened; what a run draws is far smaller."""
FINAL = Path("pictures") / "difficulty" / "contact_sheet.png"
PARTS = {"difficulty": "predicted difficulty", "masked": "masked", "reconstruction": "reconstruction"}
"""Columns of a contact sheet that change during a training."""
WHOLE: Mapping[str, str] = {
    "pictures/difficulty/contact_sheet.png": "Images of the training set at the end: predicted difficulty, the hardest "
    "patches masked, reconstruction, true loss",
    "pictures/confusion.png": "Confusion matrix: true classes are rows, predicted classes are columns",
    "pictures/predictions.png": "Validation images beside their true and their predicted classes",
    "pictures/detections.png": "Validation images with true boxes and with detections",
    "pictures/score/contact_sheet.png": "Difficulty of images, as hardpatch score measured it",
}
"""Pictures that a run folder may have, and their texts."""
RANKED = re.compile(r"(hardest|easiest|strangest)", re.IGNORECASE)
"""Names of sheets of images in order of difficulty."""


@dataclass(frozen=True)
class Picture:
    """A picture as part of the page."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Strip:
    """One image at several stages of a training, or in several runs."""

    name: str
    original: Picture
    stages: tuple[tuple[str, tuple[Picture, ...]], ...]
    """caption and pictures of each"""


def whole_pictures(run: RunFiles) -> list[tuple[str, Picture]]:
    """Return the pictures of a run with their captions; those that cannot be read are named in its notes."""
    found = dict(WHOLE)
    for path in sorted([*run.folder.glob("pictures/**/*.png"), *run.folder.glob("*/*.png")]):
        name = path.relative_to(run.folder).as_posix()
        if RANKED.search(path.stem) and name not in found:
            found[name] = f"{path.stem.replace('_', ' ').capitalize()} images"
    pictures = []
    for name, caption in found.items():
        if (image := _open(run, Path(name))) is not None:
            pictures.append((caption, _picture(image, SIDE, f"{caption} ({printable(name)})")))
    return pictures


def strips_of(run: RunFiles) -> list[Strip]:
    """Return some images through the training: before it, on its way, at its end. None if there are not two stages."""
    steps = sorted((int(path.stem[5:]), path) for path in run.folder.glob("pictures/step_[0-9]*.png") if _step(path))
    sheets = [(f"step {step:,}", path.relative_to(run.folder)) for step, path in steps]
    if run.finished:
        sheets.append((f"step {run.step:,}, the end", FINAL))
    chosen = [sheets[k] for k in evenly_spread(len(sheets), STAGES)]
    return _strips([(caption, run, path) for caption, path in chosen])


def strips_side_by_side(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Strip]:
    """Return the images that all runs show at their ends, a column for each run."""
    return _strips([(name, run, FINAL) for name, run in zip(names, runs, strict=True)])


def _strips(sheets: Sequence[tuple[str, RunFiles, Path]]) -> list[Strip]:
    opened = []
    for caption, run, path in sheets:
        image = _open(run, path)
        cells = None if image is None else _cells(image)
        if image is not None and cells is not None:
            opened.append((caption, image, cells))
    if len(opened) < 2:
        return []
    first = opened[0][2]["names"]
    shared = [name for name in first if all(name in cells["names"] for _, _, cells in opened)]
    return [_strip(shared[k], opened) for k in evenly_spread(len(shared), SHOWN)]


def _strip(name: str, opened: Sequence[tuple[str, "Image", dict[str, Any]]]) -> Strip:
    _, image, cells = opened[0]
    original = _picture(_part(image, cells, name, "picture"), CELL, f"{name}, the image itself")
    stages = []
    for caption, sheet, places in opened:
        parts = [
            _picture(_part(sheet, places, name, column), CELL, f"{name}, {caption}: {word}")
            for column, word in PARTS.items()
            if column in places["columns"]
        ]
        stages.append((caption, tuple(parts)))
    return Strip(name, original, tuple(stages))


def _part(image: "Image", cells: dict[str, Any], name: str, column: str) -> "Image":
    top, height = cells["rows"][cells["names"].index(name)]
    left, width = cells["columns"][column]
    return image.crop((left, top, left + width, top + height))


def _cells(image: "Image") -> dict[str, Any] | None:
    """Read the places of the pictures on a contact sheet; None if it has none, as those of earlier versions."""
    try:
        cells = json.loads(getattr(image, "text", {})[CELLS])
        places = [*cells["columns"].values(), *cells["rows"]]
        whole = all(isinstance(name, str) for name in cells["names"]) and len(cells["names"]) == len(cells["rows"])
        sound = all(len(place) == 2 and all(isinstance(number, int) for number in place) for place in places)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return cells if whole and sound and "picture" in cells["columns"] else None


def _step(path: Path) -> bool:
    return path.stem[5:].isdecimal()


def _open(run: RunFiles, name: Path) -> "Image | None":
    """Open a picture of a run, if it is there; a note says so if it cannot be read."""
    from PIL import Image

    path = run.folder / name
    if not path.is_file():
        return None
    try:
        image = Image.open(path)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.load()
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        run.notes.append(f"{printable(name.as_posix())} cannot be shown: {printable(str(error))}.")
        return None
    return image


def _picture(image: "Image", side: int, alt: str) -> Picture:
    from PIL import Image

    small = image.convert("RGB")
    small.thumbnail((side, side * 3), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=82, method=2)
    data = base64.b64encode(stream.getvalue()).decode()
    return Picture(f"data:image/webp;base64,{data}", alt, small.width, small.height)
