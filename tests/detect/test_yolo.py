"""YOLO: fractions become pixels, polygons, where labels and names are found, and errors that name the line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.extents import place
from hardpatch.detect.read import read_annotations
from hardpatch.errors import UserError

SIZES = {"a.png": (20, 40), "b.png": (20, 40)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for name in SIZES:
        Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels" / "train"
    folder.mkdir(parents=True)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    return folder


def read(labels: Path, images: Path, text: str) -> AnnotationSet:
    (labels / "a.txt").write_text(text)
    return place(read_annotations(labels, images), SIZES)


def test_boxes_by_hand(images: Path, labels: Path) -> None:
    yolo = read(labels, images, "1 0.5 0.5 0.5 0.2\n0.0 0.25 0.5 0.5 1\n\n")
    assert (yolo.format, yolo.categories) == ("YOLO text", {0: "cat", 1: "dog"})
    assert [(image.file, image.height, image.width) for image in yolo.images] == [("a.png", 20, 40), ("b.png", 20, 40)]
    assert [obj.category for obj in yolo.images[0].objects] == [1, 0]
    assert yolo.images[0].objects[0].box == pytest.approx((10, 8, 20, 4))
    assert yolo.images[0].objects[1].box == pytest.approx((0, 0, 20, 20))
    assert yolo.images[0].objects[0].area == pytest.approx(80)
    assert yolo.images[0].objects[0].segmentation is None
    assert yolo.images[1].objects == []
    assert "1 image without a label file, taken as without objects" in yolo.notes


def test_polygons_by_hand(images: Path, labels: Path) -> None:
    (obj,) = read(labels, images, "0 0.25 0.5 0.5 0.5 0.5 0.75").images[0].objects
    assert obj.segmentation == [[10, 10, 20, 10, 20, 15]]
    assert obj.box == (10, 10, 10, 5)


def test_what_is_left_out_is_counted(images: Path, labels: Path) -> None:
    (labels / "other.txt").write_text("")
    yolo = read(labels, images, "0 0.5 0.5 0.5 0.2\n0 0.5 0.5 0.5 0.2\n1 0.5 0.5 0 0.2\n")
    assert {reason: count for reason, count in yolo.left_out.items() if count} == {
        "repeated": 1,
        "without width or height": 1,
    }
    assert any(note.startswith("1 label file without an image, not used; the first: ") for note in yolo.notes)


def test_labels_and_names_of_a_yaml_file(images: Path, labels: Path, tmp_path: Path) -> None:
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.2")
    (tmp_path / "mine.yaml").write_text("path: .\ntrain: images/train\nnames: {0: cat, 1: dog}\n")
    yolo = read_annotations(tmp_path / "mine.yaml", images)
    assert [obj.category for obj in yolo.images[0].objects] == [1]
    assert yolo.notes[0] == f"labels of {labels}, classes of {tmp_path / 'mine.yaml'}"
    # beside the images, if there is no folder of labels
    (labels / "a.txt").rename(images / "a.txt")
    labels.rmdir()
    (tmp_path / "mine.yaml").write_text("names: [cat, dog]\n")
    yolo = read_annotations(tmp_path / "mine.yaml", images)
    assert [obj.category for obj in yolo.images[0].objects] == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "a.txt: line 2: numbers: expected class x y width height, or class x y x y x y"),
        ("0 0.5 0.5 0.5 0.2 0.9", "a.txt: line 2: numbers: expected class x y width height"),
        ("cat 0.5 0.5 0.5 0.2", "a.txt: line 2: numbers: expected"),
        ("0 nan 0.5 0.5 0.2", "a.txt: line 2: numbers: expected"),
        ("2 0.5 0.5 0.5 0.2", 'a.txt: line 2: class: expected a whole number from 0 to 1, got "2"'),
        ("0.5 0.5 0.5 0.5 0.2", 'a.txt: line 2: class: expected a whole number from 0 to 1, got "0.5"'),
        ("0 20 10 20 4", "a.txt: line 2: place: expected fractions of the image's width and height, from 0 to 1"),
        ("0 0.5 0.5 20 4", "a.txt: line 2: place: expected fractions"),
        ("0 -0.5 0.5 0.2 0.2", "a.txt: line 2: place: expected fractions"),
    ],
)
def test_lines_with_mistakes(images: Path, labels: Path, line: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(labels, images, f"0 0.5 0.5 0.1 0.1\n{line}\n")
    assert message in str(error.value)


def test_keypoints_with_and_without_their_shape(images: Path, labels: Path, tmp_path: Path) -> None:
    """A box and three points in it, with and without flags; lines of boxes alone may stand between."""
    flagged = "1 0.5 0.5 0.5 0.2 0.4 0.5 1 0.6 0.5 1 0 0 0"
    (labels.parent / "classes.txt").unlink()
    names = tmp_path / "labels" / "data.yaml"
    for shape, line in (
        ([3, 3], flagged.replace(" 1 0 0 0", " 2 0 0 0")),
        ([3, 2], "1 0.5 0.5 0.5 0.2 .4 .5 .6 .5 0 0"),
    ):
        names.write_text(f"names: [cat, dog]\nkpt_shape: {shape}\n")
        yolo = read(labels, images, f"{line}\n0 0.5 0.5 0.5 0.5\n")
        assert [obj.box for obj in yolo.images[0].objects] == [pytest.approx((10, 8, 20, 4)), (10, 5, 20, 10)]
        assert [obj.segmentation for obj in yolo.images[0].objects] == [None, None]
        assert "fields that are not used: keypoints (1 object)" in yolo.notes
        names.write_text("names: [cat, dog]\n")
        with pytest.raises(UserError, match=r"keypoints.* kpt_shape .*data\.yaml"):
            read(labels, images, f"{line}\n")
    names.write_text("names: [cat, dog]\nkpt_shape: 17\n")
    with pytest.raises(UserError, match="kpt_shape: expected number of keypoints, and 2 or 3 numbers for each, got 17"):
        read(labels, images, flagged)


def test_corners_are_asked_about(images: Path, labels: Path) -> None:
    question = "are they left, top, right, bottom? expected center x, center y, width, height"
    corners, boxes = "0 0.2 0.2 0.6 0.6\n0 0.1 0.3 0.9 0.5\n", "0 0.5 0.5 0.9 0.9\n0 0.95 0.5 0.2 0.2\n"
    assert read(labels, images, corners).notes[-1].endswith(question)
    assert not any(question in note for note in read(labels, images, boxes).notes)


def test_oriented_boxes_are_told(images: Path, labels: Path) -> None:
    yolo = read(labels, images, "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    assert yolo.images[0].objects[0].box == pytest.approx((10, 5, 20, 10))
    assert any(note.startswith("all 1 polygon have four corners, as oriented boxes have") for note in yolo.notes)
    yolo = read(labels, images, "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n0 0.1 0.1 0.2 0.1 0.2 0.3\n")
    assert not any("oriented boxes" in note for note in yolo.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: {0: cat, 2: dog}", "names: expected class numbers from 0 on without gaps, got [0, 2]"),
        ("nc: 2", "names: expected a list of class names, as YOLO's data.yaml has it, got null"),
        ("[", "is not YAML"),
    ],
)
def test_names_with_mistakes(images: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_annotations(tmp_path / "data.yaml", images)
    assert message in str(error.value)


def test_labels_that_do_not_belong(images: Path, labels: Path) -> None:
    with pytest.raises(UserError, match="a folder without XML and text files"):
        read_annotations(labels, images)
    (labels / "c.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match=r"no label file of the 2 images of .*; do the two belong together\?"):
        read_annotations(labels, images)
    (labels / "c.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match=r"got both: .*c\.xml and .*c\.txt"):
        read_annotations(labels, images)
    (labels / "c.xml").unlink()
    (labels.parent / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"expected the names of the classes in classes\.txt"):
        read_annotations(labels, images)
    Image.new("RGB", (4, 4)).save(images / "a.jpg")
    (labels.parent / "classes.txt").write_text("cat")
    with pytest.raises(UserError, match=r"a\.txt would be the labels of two images"):
        read_annotations(labels, images)
