"""Images with a class for every pixel: pairs of an image and its label map, read the same way by everyone."""

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from hardpatch.data.crop import Image
from hardpatch.data.current_file import reading_file
from hardpatch.data.decode import decode
from hardpatch.data.label_maps import LabelMap, read_label_map
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.segment.label_reading import LabelReading, Map, by_value
from hardpatch.segment.labels import IGNORED, Labels
from hardpatch.segment.pairs import find_pairs

__all__ = ["IGNORED", "Labels", "Map", "SegmentationSet", "open_segmentation"]


class SegmentationSet:
    """A numbered list of images and their label maps.

    Args:
        images: the image files.
        label_maps: the label files, in the same order.
        labels: meaning of the values in the label files.
        label_reading: how the files become classes; by the values of ``labels`` unless
            :mod:`hardpatch.segment.check` found another way.
        said: lines for the user, how the pairs were found.
    """

    def __init__(
        self,
        images: Sequence[Path],
        label_maps: Sequence[Path],
        labels: Labels,
        label_reading: LabelReading | None = None,
        said: Sequence[str] = (),
    ) -> None:
        self.images, self.label_maps, self.labels = tuple(images), tuple(label_maps), labels
        self.label_reading = by_value(labels) if label_reading is None else label_reading
        self.said = tuple(said)

    def __len__(self) -> int:
        return len(self.images)

    def without(self, indices: Collection[int], label_reading: LabelReading | None = None) -> "SegmentationSet":
        """Return the set without the pairs of these indices, with another ``label_reading`` if one is given."""
        rest = [i for i in range(len(self)) if i not in indices]
        images, label_maps = [self.images[i] for i in rest], [self.label_maps[i] for i in rest]
        return SegmentationSet(images, label_maps, self.labels, label_reading or self.label_reading, self.said)

    def image(self, i: int, reading: Reading) -> Image:
        """Decode image ``i`` to uint8 ``[H, W, channels]``; raises UndecodableImage with its path and the reason."""
        reading_file(str(self.images[i]))
        try:
            return decode(self.images[i].read_bytes(), reading)
        except (OSError, UndecodableImage) as error:
            raise UndecodableImage(f"{self.images[i]}: {error}") from None

    def content(self, i: int) -> LabelMap:
        """Read what stands in the file of label map ``i``; raises UndecodableImage with the path and the reason."""
        reading_file(str(self.label_maps[i]))
        return read_label_map(self.label_maps[i], lossy=self.labels.threshold is not None)

    def label_map(self, i: int) -> Map:
        """Read label map ``i``: uint8 ``[H, W]``, the class of each pixel or :data:`IGNORED`.

        Raises UndecodableImage with the path and the reason, also for a value that is no class.
        """
        content = self.content(i)
        try:
            return self.label_reading(content)
        except UndecodableImage as error:
            raise UndecodableImage(f"{self.label_maps[i]}: {error}") from None


def open_segmentation(
    path: str | PathLike[str], split: Literal["train", "val"], labels: Labels, suffix: str | None = None
) -> SegmentationSet:
    """List the pairs of a folder, or of its ``train`` or ``val`` part.

    The layout is the first of these that is there: ``images/train`` with ``labels/train``, ``train/images`` with
    ``train/labels``, ``images`` with ``labels``. ``labels`` may be called ``annotations`` or ``masks``, and the splits
    ``training`` and ``validation``, as in ADE20K. Files may lie in folders below these.

    Args:
        path: the folder.
        split: part of the set, where the folder has parts.
        labels: meaning of the values in the label files.
        suffix: of the stems of label maps; None finds it, see :func:`hardpatch.data.pairs.match`.

    Raises:
        UserError: if there are none, or an image has no label map or more than one.
    """
    images, label_maps, said = find_pairs(path, split, suffix)
    return SegmentationSet(images, label_maps, labels, said=said)
