"""Objects in images by a detector, as COCO's JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from hardpatch.data.crop import Image
from hardpatch.data.limits import check_channels
from hardpatch.data.reading import Pixels, Reading
from hardpatch.data.sources import Source
from hardpatch.detect.batches import image_batches
from hardpatch.detect.file import Detector
from hardpatch.detect.measure import detected_objects
from hardpatch.detect.pictures import draw_objects, drawn_detections
from hardpatch.errors import UserError
from hardpatch.figures import to_rgb
from hardpatch.interchange.finetuned import Kind
from hardpatch.predict.names import relative_names
from hardpatch.predict.task import Predictions


class DetectedObjects(NamedTuple):
    """Prediction of a detector for one image."""

    objects: list[dict[str, Any]]
    """COCO results without an image id: ``category_id``, ``score``, ``bbox`` (left, top, width, height in pixels) and,
    of a detector with masks, ``segmentation`` (compressed run lengths)"""
    size: tuple[int, int]
    """(height, width) of the image in pixels"""


class DetectorTask:
    """A detector; a prediction is :class:`DetectedObjects`.

    Args:
        loaded: the network, on its device.
    """

    kind: Kind = "detector"

    def __init__(self, loaded: Detector) -> None:
        self.model: Any
        self.model, self.categories, self.image_size = loaded
        self.classes = tuple(loaded.categories.values())
        self.reading: Reading = self.model.transform.reading

    @torch.inference_mode()
    def predictions(
        self, source: Source, reading: Reading, *, batch_size: int, workers: int, autocast: torch.dtype | None
    ) -> Iterator[Predictions]:
        """See :meth:`~hardpatch.predict.task.Task.predictions`."""
        check_channels(reading.channels)
        self.model.backbone.autocast = autocast  # the heads compute in float32
        device, ids = next(self.model.parameters()).device, list(self.categories)
        read = partial(_decoded, source, reading)
        for batch in image_batches(read, len(source), self.image_size, batch_size=batch_size, workers=workers):
            images = [sample.image.to(device) for sample in batch.samples]
            outputs = self.model(images) if images else []
            values = []
            for sample, output in zip(batch.samples, outputs, strict=True):
                size = sample.original_size
                found = {name: part.cpu() for name, part in output.items()}
                values.append(DetectedObjects(detected_objects(found, sample, size, ids), size))
            yield Predictions([sample.image_index for sample in batch.samples], values, batch.bad)

    def check_out(self, out: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.check_out`."""
        if out.suffix.lower() != ".json":
            raise UserError(f"--out: expected a .json file for the objects that a detector finds, got {out}")

    @contextmanager
    def writing(self, out: Path, source: Source, top: int) -> Iterator["CocoFile"]:
        """See :meth:`~hardpatch.predict.task.Task.writing`."""
        with out.open("w", encoding="utf-8") as file:
            coco = CocoFile(file, source)
            yield coco
            coco.finish(self.categories)

    def draw(self, image: Image, prediction: DetectedObjects, channels: str, path: Path) -> None:
        """See :meth:`~hardpatch.predict.task.Task.draw`."""
        draw_objects(to_rgb(image), drawn_detections(prediction.objects), self.categories).save(path)


def _decoded(source: Source, reading: Reading, index: int) -> Pixels:
    return source.image(index, reading)


class CocoFile:
    """JSON of COCO with ``images``, ``categories`` and ``annotations``; the latter are results, with a score each.

    Detections are written as they come, so that memory does not grow with them.

    Args:
        file: to write.
        source: the images, whose ids are their positions from 1.
    """

    def __init__(self, file: TextIO, source: Source) -> None:
        self.file, self.names = file, relative_names(source)
        self.images: list[dict[str, Any]] = []
        self.objects = 0
        file.write('{"annotations": [')

    def add(self, predictions: Predictions) -> None:
        """Write the objects of each image."""
        for index, (objects, (height, width)) in zip(predictions.indices, predictions.values, strict=True):
            image = {"id": index + 1, "file_name": self.names[index], "height": height, "width": width}
            self.images.append(image)
            for found in objects:
                area = found["bbox"][2] * found["bbox"][3]
                entry = {"id": self.objects + 1, "image_id": index + 1, **found, "area": area, "iscrowd": 0}
                self.file.write(("," if self.objects else "") + "\n" + json.dumps(entry))
                self.objects += 1

    def finish(self, categories: dict[int, str]) -> None:
        """Write the images and the categories."""
        named = [{"id": number, "name": name} for number, name in categories.items()]
        self.file.write(f'\n], "images": {json.dumps(self.images)}, "categories": {json.dumps(named)}}}\n')

    def summary(self) -> dict[str, Any]:
        """Return the number of objects."""
        return {"objects": self.objects}
