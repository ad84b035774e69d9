"""Fine-tuned networks of any kind, loaded whole, and what they predict for images in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hardpatch.data.bands import as_read
from hardpatch.data.header import Header, finite, kept_type
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage, arranged
from hardpatch.data.sources import AnyPath, Source, open_images
from hardpatch.data.survey import adapted
from hardpatch.detect.file import load_detector
from hardpatch.errors import UserError
from hardpatch.finetune.file import load_classifier
from hardpatch.interchange.finetuned import Kind, read_finetuned
from hardpatch.interchange.load import read_newest
from hardpatch.predict.classifier import ClassifierTask
from hardpatch.predict.detector import DetectorTask
from hardpatch.predict.segmenter import SegmenterTask
from hardpatch.predict.task import Task
from hardpatch.ranges import check_options
from hardpatch.segment.file import load_segmenter

TASKS: dict[Kind, Callable[[Path, torch.device], Task]] = {
    "classifier": lambda path, device: ClassifierTask(_on_device(load_classifier(path), device)),
    "segmenter": lambda path, device: SegmenterTask(load_segmenter(path, device=device)),
    "detector": lambda path, device: DetectorTask(load_detector(path, device)),
}
"""Ways to load each kind of network from its weights file."""

Images = AnyPath | Sequence[AnyPath] | Sequence[np.ndarray[Any, Any]]
"""Paths of images, as every verb takes them, or pixels ``[H, W]`` or ``[H, W, C]`` of each"""


class FineTunedModel:
    """A classifier, segmenter or detector with all that its predictions need.

    Args:
        task: the network and the form of its predictions.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    def kind(self) -> Kind:
        """``classifier``, ``segmenter`` or ``detector``."""
        return self.task.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return self.task.classes

    @property
    def model(self) -> nn.Module:
        """The network in eval mode: what :func:`hardpatch.load_classifier` and its like return as ``model``."""
        return self.task.model

    @property
    def reading(self) -> Reading:
        """Channels, type and range of the pixels that it takes."""
        return self.task.reading

    def predict(self, images: Images, *, batch_size: int = 32) -> list[Any]:
        """Predict images, each preprocessed as in the evaluation of the verb that trained the network.

        Args:
            images: paths of files, folders, tables or archives; or arrays of pixels ``[H, W]`` or ``[H, W, C]``, of any
                size, whose type says their range: 0 to 255 for uint8, 0 to 65535 for uint16, 0 to 1 for floats.
            batch_size: images per forward pass.

        Returns:
            A prediction for each image, in order. Of a classifier a
            :class:`~hardpatch.predict.classifier.Classification`: ``scores`` and ``probabilities`` ``[classes]``; of a
            segmenter the class of each pixel, uint8 ``[H, W]`` at the size of the image; of a detector
            :class:`~hardpatch.predict.detector.DetectedObjects`: ``objects``, a dictionary each, and ``size``.

        Raises:
            UserError: if there are no images, or one of them cannot be decoded.
        """
        check_options(batch_size=batch_size)
        source = _opened(images, self.reading)
        predictions = self.task.predictions(
            source, adapted(self.reading, source, "images"), batch_size=batch_size, workers=0, autocast=None
        )
        values: list[Any] = []
        for batch in predictions:
            if batch.bad:
                raise UserError(f"images: cannot decode {batch.bad[0]}; leave it out, or use hardpatch predict")
            values += batch.values
        return values


def load_finetuned(run: str | Path, *, device: str | torch.device = "cpu") -> FineTunedModel:
    """Load the whole network that ``finetune``, ``segment`` or ``detect`` has trained.

    :func:`hardpatch.load` loads the encoder in it.

    Args:
        run: run folder (of one that has not ended, its newest checkpoint), or a weights file in it.
        device: where to put it.

    Raises:
        UserError: if there is no such network.
    """

    def read(path: Path) -> FineTunedModel:
        found = read_finetuned(path)
        if found is None:
            raise UserError(
                f"RUN: expected a run of finetune, segment or detect, {path} is none, and has no classes to predict; "
                "hardpatch embed writes a vector for each image"
            )
        return FineTunedModel(TASKS[found.kind](path, torch.device(device)))

    return read_newest(run, read)


def _on_device(loaded: Any, device: torch.device) -> Any:
    return loaded._replace(model=loaded.model.to(device).requires_grad_(False))


def _opened(images: Images, reading: Reading) -> Source:
    """Open paths as a source, or take arrays as one."""
    if not isinstance(images, Sequence) or isinstance(images, str):
        images = [images]
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if arrays and len(arrays) == len(images):
        return _Arrays(arrays)
    paths = [image for image in images if not isinstance(image, np.ndarray)]
    return as_read(open_images(paths), reading) if not arrays else _mixed()


def _mixed() -> Source:
    raise UserError("images: expected paths or arrays of pixels, got both")


class _Arrays:
    """Images in memory; see :class:`~hardpatch.data.sources.Source`."""

    classes, skipped = None, ()

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        for number, array in enumerate(arrays):
            if array.ndim not in (2, 3) or not array.size:
                raise UserError(f"images[{number}]: expected pixels [H, W] or [H, W, C], got {list(array.shape)}")
        self.arrays = [array[:, :, None] if array.ndim == 2 else array for array in arrays]

    def __len__(self) -> int:
        return len(self.arrays)

    def name(self, i: int) -> str:
        """Name of image i in messages."""
        return f"images[{i}]"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Return image i as the reading says."""
        pixels = self.arrays[i]
        try:
            return arranged(finite(pixels.astype(kept_type(pixels.dtype)), reading), reading)
        except UndecodableImage as error:
            raise UndecodableImage(f"{self.name(i)}: {error}") from None

    def header(self, i: int) -> Header:
        """Return size, channels and type of image i."""
        height, width, channels = self.arrays[i].shape
        return Header(height, width, channels, kept_type(self.arrays[i].dtype), "pixels")

    def encoded(self, i: int) -> None:
        """Return None: there are pixels."""
        return

    def label(self, i: int) -> None:
        """Return None: there are no labels."""
        return
