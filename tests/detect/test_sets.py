"""Both sets of a detector, checked before training: images that are broken, of another size, or turned."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from hardpatch.data.orientation import TAG
from hardpatch.data.reading import Reading
from hardpatch.detect.sets import CheckedSet, open_sets
from hardpatch.errors import UserError

SIDES = {"height": 12, "width": 20}


def write_set(folder: Path, number: int = 4, **image: Any) -> Path:
    """Write images of 12 x 20 pixels with an object each."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(number):
        Image.fromarray(np.full((12, 20, 3), 9 * k, dtype=np.uint8)).save(folder / "images" / f"{k}.jpg")
        images.append({"id": k, "file_name": f"{k}.jpg", **SIDES, **image})
        annotations.append({"id": k, "image_id": k, "category_id": 1, "bbox": [2, 3, 8, 5]})
    write(folder, {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    return folder


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "a.json").write_text(json.dumps(content))


def read(folder: Path) -> Any:
    return json.loads((folder / "a.json").read_text())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_set(tmp_path / "train"), write_set(tmp_path / "val")


def opened(folders: tuple[Path, Path], limit: float = 0.3) -> tuple[CheckedSet, CheckedSet]:
    names = (("train", "annotations"), ("val", "val_annotations"))
    inputs: dict[str, str] = {}
    for (images, annotations), folder in zip(names, folders, strict=True):
        inputs |= {images: str(folder / "images"), annotations: str(folder / "a.json")}
    seen: list[tuple[int, int | None]] = []
    sets = open_sets(
        inputs,
        reading=Reading(3),
        threads=2,
        max_bad_fraction=limit,
        count=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(k, 8) for k in range(1, 9)]  # each image once
    return sets


def test_what_is_used_stands_in_a_line(folders: tuple[Path, Path]) -> None:
    train, _ = opened(folders)
    used = "4 images, 1 class, 4 boxes: 4 objects, 0 of them with a mask, and 0 crowds"
    assert train.lines == [f"--train: COCO JSON: {used}; left out: nothing"]


@pytest.mark.parametrize("size", [SIDES, {"height": None, "width": None}])
def test_a_broken_image_is_named_and_left_out_up_to_the_limit(tmp_path: Path, size: dict[str, Any]) -> None:
    folders = write_set(tmp_path / "train", **size), write_set(tmp_path / "val", **size)
    broken = folders[1] / "images" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-60])
    train, val = opened(folders)
    assert not train.bad
    assert len(val.bad) == 1
    assert str(broken) in val.bad[0]
    assert [image.id for image in val.annotations.images] == [0, 1, 3]
    assert "left out: 1 image that cannot be used, 1 object of images that cannot be used" in val.lines[0]
    with pytest.raises(UserError, match=r"--val: max_bad_fraction: 1 of 4 images .*2\.jpg: Truncated File Read"):
        opened(folders, 0.1)


def test_an_image_of_another_size(folders: tuple[Path, Path]) -> None:
    Image.new("RGB", (20, 14)).save(folders[0] / "images" / "1.jpg")
    train, _ = opened(folders)
    assert train.bad == [f"{folders[0] / 'images' / '1.jpg'}: the annotations say 12x20 pixels, the image has 14x20"]
    Image.new("RGB", (12, 20)).save(folders[0] / "images" / "1.jpg")
    assert opened(folders)[0].bad[0].endswith("the image has 20x12 (height and width exchanged)")


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("fits", [True, False])
def test_annotations_of_a_turned_photograph(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, upright: bool, fits: bool
) -> None:
    """A photograph is read upright or as stored, and its annotations are drawn on the one or the other."""
    exif = Image.Exif()
    exif[TAG] = 6
    for k in range(4):
        stored = (12, 20) if upright == fits else (20, 12)
        Image.new("RGB", stored).save(folders[0] / "images" / f"{k}.jpg", exif=exif)

    def decode(data: bytes, channels: int) -> np.ndarray:
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(ImageOps.exif_transpose(file) if upright else file)

    monkeypatch.setattr("hardpatch.detect.images.decode", decode)
    if fits:
        line = "--train: 4 images with an EXIF orientation: see pictures/detections.png whether the annotations"
        assert opened(folders)[0].lines[1].startswith(line)
        return
    only = "as stored, and it is read turned upright by its EXIF orientation 6"
    if not upright:
        only = "turned upright by its EXIF orientation 6, and it is read as stored"
    with pytest.raises(UserError, match=rf"--train: max_bad_fraction: 4 of 4 images .*; they fit it only {only}"):
        opened(folders)


@pytest.mark.parametrize("size", [SIDES, {"height": None, "width": None}])
def test_missing_images_are_left_out_up_to_the_limit(tmp_path: Path, size: dict[str, Any]) -> None:
    folders = write_set(tmp_path / "train"), write_set(tmp_path / "val", **size)
    missing = folders[1] / "images" / "2.jpg"
    missing.unlink()
    _, val = opened(folders)
    assert val.bad == [f"{missing}: No such file or directory"]
    assert [image.id for image in val.annotations.images] == [0, 1, 3]
    assert "left out: 1 image that cannot be used, 1 object of images that cannot be used" in val.lines[0]
    with pytest.raises(UserError, match=r"--val: .*1 of 4 images \(25.00%\) cannot be used .*2\.jpg: No such file"):
        opened(folders, 0.1)
    for k in (0, 1, 3):
        (folders[1] / "images" / f"{k}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"--val: .*images has none of the 4 images of .*a\.json, such as 0\.jpg; do the"
    ):
        opened(folders, 1.0)


def test_classes_without_an_object_and_of_the_same_name(folders: tuple[Path, Path]) -> None:
    names = [{"id": k, "name": name} for k, name in enumerate(("cat", "dog", "cat", "cow"), 1)]
    for folder in folders:
        write(folder, read(folder) | {"categories": names})
    train, val = opened(folders)
    same = "categories 1 and 3 are all called 'cat' and are classes of their own; give their objects one id"
    assert train.lines[1].startswith(f"--train: {same}")
    assert train.lines[2] == "--train: 3 of 4 classes without an object, not learned: dog, cat, cow"
    assert val.lines[2] == "--val: 3 of 4 classes without an object, not measured: dog, cat, cow"


@pytest.mark.parametrize(
    ("bbox", "reason"), [([2, 3, 0, 5], "4 without width or height"), ([20, 3, 4, 5], "4 outside their image")]
)
def test_a_set_of_which_every_object_would_be_left_out(
    folders: tuple[Path, Path], bbox: list[int], reason: str
) -> None:
    content = read(folders[1])
    for entry in content["annotations"]:
        entry["bbox"] = bbox
    write(folders[1], content)
    with pytest.raises(UserError, match=rf"--val_annotations: .*every object would be left out: {reason}"):
        opened(folders)


def test_nothing_to_learn_from(folders: tuple[Path, Path]) -> None:
    write(folders[1], read(folders[1]) | {"annotations": []})
    assert opened(folders)[1].lines[-1] == "--val: no object; average precision cannot be measured"
    write(folders[0], read(folders[0]) | {"annotations": []})
    with pytest.raises(UserError, match=r"--annotations: .* has no object to learn from"):
        opened(folders)


def test_other_classes(folders: tuple[Path, Path]) -> None:
    write(folders[1], read(folders[1]) | {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]})
    with pytest.raises(UserError, match=r"--val_annotations: expected the 1 categories .*: category 2 is None there"):
        opened(folders)


def test_no_image_can_be_used(folders: tuple[Path, Path]) -> None:
    for k in range(4):
        (folders[0] / "images" / f"{k}.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"--train: none of the 4 images can be used; the first: .*0\.jpg: not a"):
        opened(folders, 1.0)
