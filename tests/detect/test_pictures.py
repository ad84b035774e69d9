"""Pictures of annotated and detected objects."""

from pathlib import Path

import numpy as np

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.pictures import HEIGHT, detection_sheet
from tests.detect.small import detection


def test_pictures_show_annotations_and_detections(rectangles: tuple[AnnotationSet, Path]) -> None:
    coco, folder = rectangles
    bare = np.asarray(detection_sheet(coco, folder, [], number=3))
    low, high = ([detection((3, 4, 12, 10), score, image_id=2, size=(24, 32))] for score in (0.4, 0.9))
    assert np.array_equal(np.asarray(detection_sheet(coco, folder, low, number=3)), bare)
    drawn = np.asarray(detection_sheet(coco, folder, high, number=3))
    differs = (drawn != bare).any(axis=2)
    third, right = 24 + 2 * (HEIGHT + 6), drawn.shape[1] // 2
    assert differs[third:, right:].any()
    assert not differs[:third].any()
    assert not differs[:, :right].any()
