"""Pascal VOC: corners, difficult objects, image sets, and errors that name the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.detect.extents import place
from hardpatch.detect.read import read_annotations
from hardpatch.errors import UserError

XML = """<annotation><filename>{file}</filename><size><width>{width}</width><height>20</height></size>{objects}
</annotation>"""


def voc_object(name: str, *corners: object, more: str = "") -> str:
    left, top, right, bottom = corners
    box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


DOG = voc_object("dog", 1, 1, 30, 20)
CAT = voc_object("cat", 5, 3, 10, 12, more="<part><bndbox><xmin>9</xmin></bndbox></part>")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "VOC" / "JPEGImages"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(folder / name)
    return folder


def write(images: Path, **objects: str) -> Path:
    folder = images.parent / "Annotations"
    folder.mkdir(exist_ok=True)
    for stem, content in objects.items():
        (folder / f"{stem}.xml").write_text(XML.format(file=f"{stem}.jpg", width=30, objects=content))
    return folder


def test_corners_are_pixels_counted_from_1(images: Path) -> None:
    voc = read_annotations(write(images, a=DOG + CAT, b=""), images)
    assert (voc.format, voc.categories) == ("Pascal VOC XML", {1: "cat", 2: "dog"})
    first, second = voc.images
    assert (first.file, first.height, first.width, second.file, second.objects) == ("a.jpg", 20, 30, "b.png", [])
    assert [(obj.category, obj.box) for obj in first.objects] == [(2, (0, 0, 30, 20)), (1, (4, 2, 6, 10))]
    assert voc.notes == ("corners are pixels counted from 1", "fields that are not used: part (1 object)")


def test_corners_with_a_0_or_a_fraction_are_coordinates(images: Path) -> None:
    for corner in (0, 0.5):
        voc = read_annotations(write(images, a=DOG + voc_object("cat", corner, 2, 10, 12)), images)
        assert [obj.box for obj in voc.images[0].objects] == [(1, 1, 29, 19), (corner, 2, 10 - corner, 10)]
        assert "corners are coordinates: a 0 or a fraction occurs" in voc.notes


def test_difficult_objects_are_crowds_and_images_without_a_file_are_counted(images: Path) -> None:
    difficult = voc_object("cat", 5, 3, 10, 12, more="<difficult>1</difficult>")
    voc = read_annotations(write(images, a=DOG + difficult), images)
    assert [obj.crowd for obj in voc.images[0].objects] == [False, True]
    assert voc.notes[1:] == (
        "1 object marked as difficult, taken as crowds",
        f"1 image of {images} without an XML file, not used",
    )


def test_a_list_of_an_image_set(images: Path) -> None:
    write(images, a=DOG, b=CAT)
    sets = images.parent / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("b  1\n")
    voc = read_annotations(sets / "val.txt", images, {3: "cat", 7: "dog"})
    assert [image.file for image in voc.images] == ["b.png"]
    assert [obj.category for obj in voc.images[0].objects] == [3]
    (sets / "val.txt").write_text("b\nc\n")
    with pytest.raises(UserError, match=r"c\.xml is missing, one of 1"):
        read_annotations(sets / "val.txt", images)
    (images / "list.txt").write_text("a.jpg\n")
    (images.parent / "Annotations").rename(images.parent / "other")
    with pytest.raises(UserError, match=r"list\.txt: .* with a folder Annotations above"):
        read_annotations(images / "list.txt", images)


@pytest.mark.parametrize("width", [0, ""])
def test_a_size_of_0_is_that_of_the_image(images: Path, width: object) -> None:
    folder = write(images, a=DOG)
    (folder / "a.xml").write_text(XML.format(file="a.jpg", width=width, objects=DOG))
    voc = read_annotations(folder, images)
    assert not voc.images[0].has_size
    assert place(voc, {"a.jpg": (20, 30)}).images[0].width == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "a.xml: expected Pascal VOC annotations as XML"),
        ("<annotations/>", "got <annotations>; in CVAT, export Pascal VOC or COCO"),
        ("<html/>", "a.xml: expected Pascal VOC annotations, <annotation>; got <html>"),
        (voc_object("cat", 5, "", 10, 12), 'a.xml: object 1: bndbox/ymin: expected a number of pixels, got ""'),
        (voc_object("cat", 5, "nan", 10, 12), "object 1: bndbox/ymin: expected a number of pixels"),
        (voc_object("", 5, 3, 10, 12), "object 1: name: expected the name of a class, got null"),
        (voc_object("cow", 5, 3, 10, 12), 'object 1: name: expected a class of the training set (cat, dog), got "cow"'),
        (voc_object("cat", 5, 3, 10, 12, more="<difficult>2</difficult>"), "difficult: expected 0 or 1"),
    ],
)
def test_files_with_mistakes(images: Path, content: str, message: str) -> None:
    folder = write(images, a=content)
    if not content.startswith("<object>"):
        (folder / "a.xml").write_text(content)
    with pytest.raises(UserError) as error:
        read_annotations(folder, images, {1: "cat", 2: "dog"})
    assert message in str(error.value)


def test_an_object_without_a_box_is_counted(images: Path) -> None:
    voc = read_annotations(write(images, a=DOG + "<object><name>cat</name></object>"), images)
    assert voc.left_out == {"without a box": 1}


NUMBERED = "<x1>5</x1><y1>3</y1><x2>10</x2><y2>3</y2><x3>10</x3><y3>12</y3>"
POINTS = "<pt><x>5</x><y>3</y></pt><pt><x>10</x><y>3</y></pt><pt><x>10</x><y>12</y></pt>"


@pytest.mark.parametrize("polygon", [NUMBERED, POINTS])
def test_polygons_are_masks(images: Path, polygon: str) -> None:
    """Roboflow and LabelMe write them; counted from 1, the center of a pixel is half a pixel before its number."""
    masked = voc_object("cat", 5, 3, 10, 12, more=f"<polygon>{polygon}</polygon>")
    alone = f"<object><name>dog</name><polygon>{polygon}</polygon></object>"
    first, second = read_annotations(write(images, a=masked + alone), images).images[0].objects
    assert first.segmentation == second.segmentation == [[4.5, 2.5, 9.5, 2.5, 9.5, 11.5]]
    assert (first.box, second.box) == ((4, 2, 6, 10), (4.5, 2.5, 5, 9))
    coordinates = read_annotations(write(images, a=masked + voc_object("dog", 0, 1, 9, 9)), images).images[0].objects[0]
    assert (coordinates.segmentation, coordinates.box) == ([[5, 3, 10, 3, 10, 12]], (5, 3, 5, 9))


def test_polygons_that_cannot_be_used(images: Path) -> None:
    line = "<polygon><x1>5</x1><y1>3</y1><x2>10</x2><y2>3</y2></polygon>"
    voc = read_annotations(write(images, a=voc_object("cat", 5, 3, 10, 12, more=line)), images)
    assert (voc.images[0].objects[0].segmentation, voc.images[0].objects[0].box) == (None, (4, 2, 6, 10))
    assert "1 object with polygons of fewer than three corners or no area" in voc.notes
    for wrong in ("<x1>5</x1><y1></y1>", "<x1>5</x1><x2>6</x2>", "<x1>5</x1>"):
        folder = write(images, a=voc_object("cat", 5, 3, 10, 12, more=f"<polygon>{wrong}</polygon>"))
        with pytest.raises(
            UserError, match=r"a\.xml: object 1: polygon: expected x1, y1, x2, y2, \.\.\. or points .*x1"
        ):
            read_annotations(folder, images)


def test_rotated_boxes(images: Path) -> None:
    """CVAT has the rotation as an attribute, roLabelImg an element of its own."""
    attribute = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    rotated = voc_object("cat", 10, 5, 20, 11, more=attribute)
    angle = "<robndbox><cx>15</cx><cy>8</cy><w>10</w><h>6</h><angle>1.5707963</angle></robndbox>"
    voc = read_annotations(
        write(images, a=rotated + f"<object><name>dog</name>{angle}</object>" + voc_object("cat", 0, 1, 4, 4)), images
    )
    assert [obj.box for obj in voc.images[0].objects[:2]] == [pytest.approx((12, 3, 6, 10))] * 2
    assert "2 boxes rotated: taken as the upright box around it" in voc.notes


def test_what_is_not_used_is_told(images: Path) -> None:
    flags = "<truncated>1</truncated><occluded>1</occluded>"
    folder = write(images, a=voc_object("cat", 5, 3, 10, 12, more=flags) + voc_object("dog", 1, 1, 4, 4))
    content = (folder / "a.xml").read_text().replace("<size>", "<segmented>1</segmented><size>")
    (folder / "a.xml").write_text(content)
    notes = read_annotations(folder, images).notes
    assert "fields that are not used: truncated (1 object), occluded (1 object)" in notes
    assert any(note.startswith("segmented is 1 in 1 file: masks in PNG files") for note in notes)


def test_hidden_files_are_none(images: Path) -> None:
    folder = write(images, a=DOG)
    (folder / "._a.xml").write_bytes(b"\x00\x05")
    assert len(read_annotations(folder, images).images) == 1


def test_two_files_of_one_image(images: Path) -> None:
    folder = write(images, a=DOG)
    (folder / "c.xml").write_text(XML.format(file="a.jpg", width=30, objects=CAT))
    with pytest.raises(UserError, match=r"a\.xml and .*c\.xml are of the same image, a\.jpg"):
        read_annotations(folder, images)
