"""Images of a set, each decoded once before training, and their sizes compared with the annotations."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardpatch.data.current_file import reading_file
from hardpatch.data.decode import decode, read_header
from hardpatch.data.folders import read_file
from hardpatch.data.orientation import upright_size
from hardpatch.data.reading import RGB, Reading, UndecodableImage
from hardpatch.detect.annotations import AnnotatedImage
from hardpatch.detect.extents import Size

Image = npt.NDArray[np.uint8]


def read_image(image: AnnotatedImage, folder: str | os.PathLike[str], reading: Reading = RGB) -> Image:
    """Read an image from its folder: uint8 ``[H, W, C]``.

    Raises:
        UndecodableImage: if it cannot be read or has another size than its annotations say.
    """
    return _load(image, folder, reading)[0]


def _load(image: AnnotatedImage, folder: str | os.PathLike[str], reading: Reading) -> tuple[Image, bytes]:
    """Return the pixels of :func:`read_image`, and the content of the file."""
    path = Path(folder) / image.file
    reading_file(str(path))
    try:
        data = read_file(path)
        pixels = decode(data, reading)
    except UndecodableImage as error:
        raise UndecodableImage(f"{path}: {error}") from None
    size = (pixels.shape[0], pixels.shape[1])
    if image.has_size and size != (image.height, image.width):
        raise UndecodableImage(
            f"{path}: the annotations say {image.height}x{image.width} pixels, the image has {size[0]}x{size[1]}"
            f"{_turned(data, image, size, reading)}"
        )
    return pixels, data


@dataclass
class DecodedImages:
    """Result of :func:`decode_images`, by index of the image."""

    sizes: dict[int, Size] = field(default_factory=dict)
    """(height, width) of those that can be used"""
    bad: dict[int, str] = field(default_factory=dict)
    """entries "path: reason" of those that cannot be used"""
    oriented: set[int] = field(default_factory=set)
    """those that can be used and have an EXIF orientation other than 1"""


def decode_images(
    images: Iterable[tuple[int, AnnotatedImage]],
    folder: Path,
    reading: Reading,
    threads: int,
    done: Callable[[], None],
) -> DecodedImages:
    """Decode images in parallel.

    Args:
        images: index and entry of each.
        folder: of the images.
        reading: channels, type and range of the images.
        threads: files to decode at a time.
        done: is called after each image.
    """
    result = DecodedImages()

    def look(indexed: tuple[int, AnnotatedImage]) -> tuple[int, Size | str, int]:
        index, image = indexed
        try:
            pixels, data = _load(image, folder, reading)
        except UndecodableImage as error:
            return index, str(error), 1
        return index, (pixels.shape[0], pixels.shape[1]), read_header(data, reading.max_pixels).orientation

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for index, found, orientation in pool.map(look, images):
            done()
            if isinstance(found, str):
                result.bad[index] = found
                continue
            result.sizes[index] = found
            if orientation != 1:
                result.oriented.add(index)
    return result


def _turned(data: bytes, image: AnnotatedImage, size: Size, reading: Reading) -> str:
    """Explain a difference in size that a turn by 90 degrees would settle; empty for any other."""
    if size != (image.width, image.height):
        return ""
    header = read_header(data, reading.max_pixels)
    orientation = header.orientation
    if orientation < 5:
        return " (height and width exchanged)"
    if size == upright_size((header.height, header.width), orientation):  # of the picture as it is stored
        return f"; they fit it only turned upright by its EXIF orientation {orientation}, and it is read as stored"
    return f"; they fit it only as stored, and it is read turned upright by its EXIF orientation {orientation}"
