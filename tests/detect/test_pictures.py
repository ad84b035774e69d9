"""Pictures of annotated and detected objects."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from hardpatch.data.reading import Reading
from hardpatch.detect.annotations import AnnotatedImage, AnnotationSet
from hardpatch.detect.pictures import HEIGHT, detection_sheet
from tests.detect.small import detection


def test_the_title_names_the_channels(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((60, 30, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    annotations = AnnotationSet("five bands", {1: "cat"}, [AnnotatedImage(1, "a.tif", 60, 30)])
    sheet = detection_sheet(annotations, tmp_path, [], reading=Reading(5, "uint16", (0.0,), (9.0,)))
    expected = Image.new("RGB", sheet.size, "white")
    draw, font = ImageDraw.Draw(expected), ImageFont.load_default(14)
    title = "annotated, channels 0, 1, 2 of 5"
    draw.text((6, 4), title, fill="#333333", font=font)
    box = (0, 0, 6 + round(font.getlength(title)), 24)  # wider than the image: the sheet makes room
    assert np.array_equal(np.asarray(sheet.crop(box)), np.asarray(expected.crop(box)))
    assert np.asarray(sheet.crop(box)).min() < 100


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
