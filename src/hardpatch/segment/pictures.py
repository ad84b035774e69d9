"""Pictures of segmentation: images beside their label maps, and a table of the measures of each class."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL.Image import Resampling

from hardpatch.curves import training_curves
from hardpatch.data.crop import Image
from hardpatch.data.reading import Reading, to_bytes
from hardpatch.figures import Sheet, channels_caption, legible, to_rgb
from hardpatch.files import atomic_path
from hardpatch.segment.data import IGNORED, Map, SegmentationSet
from hardpatch.segment.measure import EvaluationResult, Measures
from hardpatch.train.metrics import read_metrics

LEGEND_ENTRIES, LEGEND_COLUMNS = 24, 6


def palette() -> Map:
    """Return a color for each class, uint8 ``[256, 3]``, black for ignored pixels.

    These are the colors of PASCAL VOC without its black: the bits of the class index go to the three channels in turn,
    the lowest ones to the highest bits.
    """
    index = np.arange(1, 257)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(24):
        colors[:, bit % 3] |= ((index >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    colors[IGNORED] = 0
    return colors


def label_sheet(rows: Sequence[tuple[Image, Map, Map]], names: Sequence[str], channels: str = "") -> Sheet:
    """Draw rows of an image ``[H, W, C]``, its true and its predicted classes ``[H, W]``, and a legend.

    Args:
        rows: image, true and predicted classes of each.
        names: of the classes.
        channels: is appended to the title of the images.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("rows: expected at least one image, got none")
    colors = palette()
    pictures = [
        {f"image{channels}": to_rgb(image), "truth": colors[truth], "prediction": colors[predicted]}
        for image, truth, predicted in rows
    ]
    return _sheet(pictures, [labels for _, *maps in rows for labels in maps], names)


def overlay_figure(image: Image, predicted: Map, names: Sequence[str], channels: str = "") -> Sheet:
    """Draw an image ``[H, W, C]``, its predicted classes ``[H, W]`` over it and alone, and a legend.

    Args:
        image: uint8.
        predicted: the classes.
        names: of the classes.
        channels: is appended to the title of the image.
    """
    colors, rgb = palette()[predicted], to_rgb(image)
    over = (rgb.astype(np.uint16) + colors) // 2
    pictures = {f"image{channels}": rgb, "overlay": over.astype(np.uint8), "prediction": colors}
    return _sheet([pictures], [predicted], names)


def _sheet(rows: Sequence[Mapping[str, Image]], maps: Sequence[Map], names: Sequence[str]) -> Sheet:
    """Draw rows of three pictures by their titles, and a legend of the classes in ``maps``."""
    colors = palette()
    present = np.unique(np.concatenate([np.unique(labels) for labels in maps]))
    shown = [label for label in present.tolist() if label != IGNORED][:LEGEND_ENTRIES]
    lines = math.ceil(len(shown) / LEGEND_COLUMNS)
    width, gap, title, entry = 3.0, 0.06, 0.35, 1.5  # inches
    heights = [width * shape[0] / shape[1] for shape in (next(iter(row.values())).shape for row in rows)]
    tops = list(accumulate((height + gap for height in heights), initial=title))
    sheet = Sheet(3 * width + 4 * gap, tops[-1] + 0.3 + 0.22 * lines, dpi=100)
    for column, name in enumerate(rows[0]):
        sheet.write(name, gap + column * (width + gap) + width / 2, title - 6 / 72, 10, "ms")
    for pictures, height, top in zip(rows, heights, tops, strict=False):
        for column, picture in enumerate(pictures.values()):
            sheet.place(picture, gap + column * (width + gap), top, width, height, Resampling.NEAREST)
    left = (3 * width + 4 * gap - entry * math.ceil(len(shown) / max(1, lines))) / 2
    for number, label in enumerate(shown):
        column, line = divmod(number, lines)
        x, y = left + column * entry, tops[-1] + 0.26 + 0.19 * line
        sheet.place(colors[label][None, None], x, y - 0.04, 0.22, 0.08)
        sheet.write(legible(names[label]), x + 0.3, y, 8, "lm", entry - 0.35)
    return sheet


def write_pictures(folder: Path, evaluation: EvaluationResult, pairs: SegmentationSet, reading: Reading) -> list[Path]:
    """Draw the pictures of a run, and return their paths.

    Args:
        folder: of the run; pictures go below ``pictures``.
        evaluation: the predictions to show; without any there are only curves.
        pairs: the set that was evaluated.
        reading: channels, type and range of the images.
    """
    pictures = [training_curves(read_metrics(folder / "metrics.jsonl"), folder / "pictures" / "curves.png")]
    if evaluation.maps:
        rows = [
            (to_bytes(pairs.image(i, reading), reading), pairs.label_map(i), map.numpy())
            for i, map in evaluation.maps.items()
        ]
        pictures.append(folder / "pictures" / "predictions.png")
        with atomic_path(pictures[-1]) as partial:
            label_sheet(rows, pairs.labels.names, channels_caption(reading.channels)).save(partial)
    return pictures


def table(measures: Measures, names: Sequence[str]) -> str:
    """Write IoU, accuracy and share of the pixels of each class as a text table, in percent."""
    width = max(map(len, names))
    total = sum(measures.pixels)
    rows = zip(names, measures.iou, measures.accuracy, measures.pixels, strict=True)
    lines = [f"{'class':{width}}     IoU  accuracy  share of pixels"]
    for name, iou, accuracy, pixels in rows:
        lines.append(f"{name:{width}}  {_percent(iou)}    {_percent(accuracy)}           {_percent(pixels / total)}")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "     -" if math.isnan(share) else f"{100 * share:6.2f}"
