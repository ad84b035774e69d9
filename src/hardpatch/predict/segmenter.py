"""Label maps of images by a segmenter, as a folder of PNG files."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

from hardpatch.data.crop import Image
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.figures import enlarge
from hardpatch.interchange.finetuned import Kind
from hardpatch.predict.names import map_names, relative_names
from hardpatch.predict.task import Predictions
from hardpatch.printable import printable
from hardpatch.segment.batches import scaled_images
from hardpatch.segment.data import Map
from hardpatch.segment.file import Segmenter
from hardpatch.segment.measure import class_map, predict_logits
from hardpatch.segment.pictures import overlay_figure, palette

MAPS, CLASSES, TABLE = "labels", "classes.txt", "predictions.csv"
"""Names in the folder that is written."""


class SegmenterTask:
    """A segmenter; a prediction is a label map, uint8 ``[H, W]``, at the size of the image.

    Args:
        loaded: the network, on its device.
    """

    kind: Kind = "segmenter"

    def __init__(self, loaded: Segmenter) -> None:
        self.model, self.classes, self.inference = loaded
        self.reading = loaded.model.reading

    @torch.inference_mode()
    def predictions(
        self, source: Source, reading: Reading, *, batch_size: int, workers: int, autocast: torch.dtype | None
    ) -> Iterator[Predictions]:
        """See :meth:`~hardpatch.predict.task.Task.predictions`; images differ in size and come one at a time."""
        device = self.model.mean.device
        for index, (image, size, bad) in enumerate(scaled_images(source, self.inference.short_side, reading, workers)):
            if bad:
                yield Predictions([], [], [bad])
                continue
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = predict_logits(self.model, image.unsqueeze(0).to(device), self.inference)
            yield Predictions([index], [class_map(logits, size)[0].byte().cpu().numpy()])

    def check_out(self, out: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.check_out`."""
        if out.suffix.lower() in (".parquet", ".csv", ".json", ".png"):
            raise UserError(f"--out: expected a new folder for the label maps of a segmenter, got {out}")

    @contextmanager
    def writing(self, out: Path, source: Source, top: int) -> Iterator["LabelMaps"]:
        """See :meth:`~hardpatch.predict.task.Task.writing`."""
        out.mkdir()
        lines = "".join(f"{number} {name}\n" for number, name in enumerate(self.classes))
        (out / CLASSES).write_text(lines, encoding="utf-8")
        with (out / TABLE).open("w", encoding="utf-8", newline="") as file:
            yield LabelMaps(out, source, csv.writer(file))

    def draw(self, image: Image, prediction: Map, channels: str, path: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.draw`."""
        factor = len(enlarge(image)) // len(image)
        large = prediction.repeat(factor, axis=0).repeat(factor, axis=1)
        overlay_figure(enlarge(image), large, self.classes, channels).save(path)


class LabelMaps:
    """Folder of indexed PNG files with a palette, and the table of which image each belongs to.

    Args:
        out: the folder.
        source: the images.
        table: of CSV.
    """

    def __init__(self, out: Path, source: Source, table: Any) -> None:
        self.out, self.source, self.table = out, source, table
        self.names, self.palette = map_names(relative_names(source)), palette().ravel().tolist()
        table.writerow(["path", "label_map", "height", "width"])

    def add(self, predictions: Predictions) -> None:
        """Write a label map for each image."""
        for index, classes in zip(predictions.indices, predictions.values, strict=True):
            path = self.out / MAPS / self.names[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Pillow.fromarray(classes)
            image.putpalette(self.palette)  # which makes an indexed image of a gray one
            image.save(path)
            named = printable(self.source.name(index)), printable(f"{MAPS}/{self.names[index]}")
            self.table.writerow([*named, *classes.shape])

    def summary(self) -> dict[str, Any]:
        """Return nothing: the maps say it all."""
        return {}
