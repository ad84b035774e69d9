from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.detect.annotations import AnnotationSet
from tests.detect.small import coco_content, read_content, write_rectangles


@pytest.fixture
def coco(tmp_path: Path) -> AnnotationSet:
    """Set of :func:`~tests.detect.small.coco_content`; its images are in ``images``."""
    return read_content(tmp_path, coco_content())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folder with the images of :func:`~tests.detect.small.coco_content`: a bright square in each."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (7, 3, 5):
        pixels = np.full((4, 6, 3), number, dtype=np.uint8)
        pixels[1:3, 2:4] = 200
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def rectangles(tmp_path: Path) -> tuple[AnnotationSet, Path]:
    """Set and folder of :func:`~tests.detect.small.write_rectangles`."""
    folder = tmp_path / "rectangles"
    return write_rectangles(folder), folder
