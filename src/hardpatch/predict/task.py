"""Interface of a fine-tuned network of any kind to the verb ``predict``."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from hardpatch.data.crop import Image
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.interchange.finetuned import Kind


class Predictions(NamedTuple):
    """Predictions for some images of a source."""

    indices: Sequence[int]
    """positions of the images in their source"""
    values: Sequence[Any]
    """a prediction for each, as :class:`Task` has them"""
    bad: Sequence[str] = ()
    """a line for each image that cannot be decoded"""


class Writer(Protocol):
    """File or folder that predictions are written to."""

    def add(self, predictions: Predictions) -> None:
        """Write predictions, in the order of their images."""

    def summary(self) -> dict[str, Any]:
        """Return plain values about all that was written."""


class Task(Protocol):
    """A fine-tuned network, and the form of its predictions."""

    @property
    def kind(self) -> Kind:
        """Kind of the network."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""

    @property
    def model(self) -> nn.Module:
        """The network in eval mode; what it takes depends on its kind."""

    @property
    def reading(self) -> Reading:
        """Channels, type and range of the pixels that it takes."""

    def predictions(
        self, source: Source, reading: Reading, *, batch_size: int, workers: int, autocast: torch.dtype | None
    ) -> Iterator[Predictions]:
        """Predict every image of a source once, in order, as the evaluation of the verb that trained it does.

        Args:
            source: images of any size.
            reading: of them, adapted to their type.
            batch_size: images per forward pass.
            workers: processes that decode; 0 decodes in this one.
            autocast: precision of the network, None for float32.
        """

    def check_out(self, out: Path) -> None:
        """Raise UserError unless the name of the output fits the kind of predictions."""

    def writing(self, out: Path, source: Source, top: int) -> AbstractContextManager[Writer]:
        """Open the output, written completely or not at all."""

    def draw(self, image: Image, prediction: Any, channels: str, path: Path) -> None:
        """Write a picture of an image, uint8 ``[H, W, C]``, with its prediction.

        Args:
            image: the image.
            prediction: of it.
            channels: text about which channels are shown.
            path: PNG file.
        """
