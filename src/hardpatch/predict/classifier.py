"""Classes of images by a classifier, as a table."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.data.crop import Image
from hardpatch.data.loader import eval_batches
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.figures import Sheet, enlarge, legible, to_rgb
from hardpatch.finetune.file import LoadedClassifier
from hardpatch.finetune.measure import whole_image
from hardpatch.interchange.finetuned import Kind
from hardpatch.predict.numbers import NumberTable, writing_numbers
from hardpatch.predict.task import Predictions
from hardpatch.printable import printable

SUFFIXES = (".parquet", ".csv")
CAPTIONED = 3
"""Classes that a caption names."""


class Classification(NamedTuple):
    """Prediction of a classifier for one image."""

    scores: Tensor
    """float32 ``[classes]``, as the network returns them"""
    probabilities: Tensor
    """float32 ``[classes]``, of :func:`probabilities`; of a regression its numbers"""

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return (class, probability) of the most probable classes."""
        values, classes = self.probabilities.topk(min(count, len(self.probabilities)))
        return list(zip(classes.tolist(), values.tolist(), strict=True))


def probabilities(scores: Tensor, task: str = "classes") -> Tensor:
    """Return the probability of each class from the outputs of a network, both float32 ``[B, classes]``.

    Several labels an image (``multilabel``) do not exclude each other. The outputs of a ``regression`` are the numbers
    themselves, which stay.
    """
    if task == "regression":
        return scores
    return scores.sigmoid() if task == "multilabel" else scores.softmax(dim=1)


class ClassifierTask:
    """A classifier; a prediction is a :class:`Classification`.

    Args:
        loaded: the network, on its device.
    """

    kind: Kind = "classifier"

    def __init__(self, loaded: LoadedClassifier) -> None:
        self.model, self.classes, self.image_size = loaded.model, loaded.classes, loaded.image_size
        self.reading = loaded.model.reading

    @torch.inference_mode()
    def predictions(
        self, source: Source, reading: Reading, *, batch_size: int, workers: int, autocast: torch.dtype | None
    ) -> Iterator[Predictions]:
        """See :meth:`~hardpatch.predict.task.Task.predictions`."""
        device = self.model.mean.device
        transform = replace(whole_image(self.image_size, self.model), reading=reading)
        for batch in eval_batches(source, transform, batch_size=batch_size, workers=workers):
            images = self.model.normalize(batch.images.to(device))
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                scores = self.model(images).float()
            rows = zip(scores.cpu(), probabilities(scores, self.model.task).cpu(), strict=True)
            yield Predictions(batch.indices.tolist(), [Classification(*row) for row in rows], batch.bad)

    def check_out(self, out: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.check_out`."""
        if out.suffix.lower() not in SUFFIXES:
            raise UserError(f"--out: expected a .parquet or .csv file for the predictions of a classifier, got {out}")

    @contextmanager
    def writing(self, out: Path, source: Source, top: int) -> Iterator["ClassTable | NumberTable"]:
        """See :meth:`~hardpatch.predict.task.Task.writing`."""
        if self.model.task != "classes":
            with writing_numbers(out, source, self.classes) as table:
                yield table
            return
        top = min(top, len(self.classes))
        with (_parquet_rows if out.suffix.lower() == ".parquet" else _csv_rows)(out, top, _labeled(source)) as write:
            yield ClassTable(self.classes, source, top, write)

    def draw(self, image: Image, prediction: Classification, channels: str, path: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.draw`."""
        pixels = to_rgb(enlarge(image))
        width, line = 3.2, 0.17  # inches
        height = width * pixels.shape[0] / pixels.shape[1]
        if self.model.task == "regression":
            values = prediction.probabilities[:CAPTIONED].tolist()
            lines = [f"{name}  {value:.4g}" for name, value in zip(self.classes, values, strict=False)]
        else:
            lines = [f"{self.classes[k]}  {share:.1%}" for k, share in prediction.top(CAPTIONED)]
        lines += [channels.removeprefix(", ")] if channels else []
        sheet = Sheet(width + 0.2, height + 0.25 + line * len(lines), dpi=100)
        sheet.place(pixels, 0.1, 0.1, width, height)
        sheet.write("\n".join(map(legible, lines)), 0.1, 0.1 + height + 2 / 72)
        sheet.save(path)


class Row(NamedTuple):
    """A row of the table."""

    path: str
    label: str | None
    classes: list[str]
    """the most probable first"""
    probabilities: list[float]


class ClassTable:
    """Table of predictions, which counts those that are right if the images are labeled.

    Args:
        classes: names of the classes of the network.
        source: the images.
        top: number of classes in a row.
        write: adds rows.
    """

    def __init__(
        self, classes: Sequence[str], source: Source, top: int, write: Callable[[Sequence[Row]], None]
    ) -> None:
        self.classes, self.source, self.top, self.write = classes, source, top, write
        self.number = {name: k for k, name in enumerate(classes)}
        self.labeled = self.right = self.right_in_five = 0

    def add(self, predictions: Predictions) -> None:
        """Write a row for each image."""
        rows = []
        for index, value in zip(predictions.indices, predictions.values, strict=True):
            label, top = _label(self.source, index), value.top(self.top)
            # names need not be valid Unicode, tables must be
            path = printable(self.source.name(index))
            rows.append(Row(path, label, [self.classes[k] for k, _ in top], [share for _, share in top]))
            truth = self.number.get(label) if label is not None else None
            if truth is not None:
                likeliest = value.scores.topk(min(5, len(self.classes))).indices.tolist()
                self.labeled += 1
                self.right += truth == likeliest[0]
                self.right_in_five += truth in likeliest
        self.write(rows)

    def summary(self) -> dict[str, Any]:
        """Return the accuracy on the images whose label is a class of the network; None without such images."""
        share = None if not self.labeled else self.right / self.labeled
        in_five = None if not self.labeled else self.right_in_five / self.labeled
        return {"labeled": self.labeled, "top1": share, "top5": in_five}


def _labeled(source: Source) -> bool:
    return source.classes is not None


def _label(source: Source, index: int) -> str | None:
    label = source.label(index)
    return None if label is None or source.classes is None else source.classes[label]


@contextmanager
def _parquet_rows(path: Path, top: int, labeled: bool) -> Iterator[Callable[[Sequence[Row]], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float32()
    fields = [("path", text), *([("label", text)] if labeled else []), ("prediction", text), ("probability", number)]
    schema = pa.schema([*fields, ("classes", pa.list_(text)), ("probabilities", pa.list_(number))])

    def write(rows: Sequence[Row]) -> None:
        values = [{**row._asdict(), "prediction": row.classes[0], "probability": row.probabilities[0]} for row in rows]
        file.write_table(pa.Table.from_pylist(values, schema=schema))

    with pq.ParquetWriter(path, schema) as file:
        yield write


@contextmanager
def _csv_rows(path: Path, top: int, labeled: bool) -> Iterator[Callable[[Sequence[Row]], None]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        others = [name for k in range(2, top + 1) for name in (f"class_{k}", f"probability_{k}")]
        table.writerow(["path", *(["label"] if labeled else []), "prediction", "probability", *others])

        def write(rows: Sequence[Row]) -> None:
            for row in rows:
                pairs = zip(row.classes, row.probabilities, strict=True)
                cells = [cell for name, share in pairs for cell in (name, f"{share:.6g}")]
                table.writerow([row.path, *([row.label or ""] if labeled else []), *cells])

        yield write
