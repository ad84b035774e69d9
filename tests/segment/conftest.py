from pathlib import Path

import pytest

from hardpatch.segment.data import SegmentationSet, open_segmentation
from tests.segment.small import THREE, blocks, write_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with ``images/train``, ``images/val``, ``labels/train`` and ``labels/val``."""
    for split, number in (("train", 3), ("val", 2)):
        for k in range(number):
            write_pair(tmp_path / "images" / split, tmp_path / "labels" / split, f"{split}_{k}", blocks(k))
    return tmp_path


@pytest.fixture
def pairs(tmp_path: Path) -> SegmentationSet:
    """Five images of 24 x 32 px, three classes."""
    for k in range(5):
        write_pair(tmp_path / "set" / "images", tmp_path / "set" / "labels", str(k), blocks(k))
    return open_segmentation(tmp_path / "set", "train", THREE)
