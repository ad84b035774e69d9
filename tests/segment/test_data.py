"""Images with label maps: folder layouts, classes, errors before training."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.errors import UserError
from hardpatch.segment.data import IGNORED, Labels, SegmentationSet, check, find_labels, open_segmentation
from tests.segment.small import THREE, blocks, write_pair


def test_layouts(folder: Path, tmp_path: Path) -> None:
    def stems(path: Path, split: str) -> list[str]:
        pairs = open_segmentation(path, "train" if split == "train" else "val", THREE)
        assert [image.stem for image in pairs.images] == [label_map.stem for label_map in pairs.label_maps]
        return [image.stem for image in pairs.images]

    assert stems(folder, "train") == ["train_0", "train_1", "train_2"]
    assert stems(folder, "val") == ["val_0", "val_1"]
    other = tmp_path / "other"
    write_pair(other / "val" / "images", other / "val" / "labels", "a", blocks(), ending=".jpg")
    assert stems(other, "val") == ["a"]
    assert stems(other / "val", "val") == ["a"]
    assert stems(other / "val", "train") == ["a"]  # a folder without parts is used whole
    write_pair(other / "images", other / "annotations", "b", blocks(), ending=".tif")
    (other / "images" / ".hidden.png").write_bytes(b"")
    (other / "images" / "readme.txt").write_bytes(b"")
    assert stems(other, "train") == ["b"]


def test_ade20k(tmp_path: Path) -> None:
    values = np.array([[0, 1], [150, 2]])
    write_pair(tmp_path / "images" / "training", tmp_path / "annotations" / "training", "ADE_train_00000001", values)
    write_pair(tmp_path / "images" / "validation", tmp_path / "annotations" / "validation", "ADE_val_1", values)
    labels = find_labels(tmp_path)
    assert labels.names[0] == "class 1"
    assert len(labels.names) == 150
    assert labels.values == tuple(range(1, 151))
    assert labels.ignored == (0, 255)
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    table += "".join(f"{k}\t0.1\t1\t1\t0\tthing {k}, item\n" for k in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(table)
    labels = find_labels(tmp_path)
    assert labels.names[149] == "thing 150"
    for split in ("train", "val"):
        pairs = open_segmentation(tmp_path, "train" if split == "train" else "val", labels)
        assert pairs.label_map(0).tolist() == [[IGNORED, 0], [149, 1]]
        pixels, unreadable = check(pairs, split)
        assert not unreadable
        assert pixels.sum() == 3
        assert pixels[[0, 1, 149]].tolist() == [1, 1, 1]


def test_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 Sky\n1 Sign Symbol\n\n11 Unlabeled (ignore)\n")
    labels = find_labels(tmp_path)
    assert labels == Labels(("Sky", "Sign Symbol"), (0, 1), (11, 255))
    assert find_labels(tmp_path / "train") == labels  # the folder above
    assert find_labels(tmp_path, ignore=[7, 9]).ignored == (7, 9, 11)
    (tmp_path / "names").write_text("sky\nroad\ncar\n")
    assert find_labels(tmp_path, str(tmp_path / "names")) == THREE
    assert find_labels(tmp_path, str(tmp_path / "names"), ignore=[1, 255]) == Labels(("sky", "car"), (0, 2), (1, 255))
    shifted = find_labels(tmp_path, str(tmp_path / "names"), reduce_zero_label=True)
    assert shifted == Labels(("sky", "road", "car"), (1, 2, 3), (0, 255))
    assert find_labels(tmp_path, "2") == Labels(("class 0", "class 1"), (0, 1), (255,))
    table = Labels(("a", "b"), (0, 2), (1, 255)).table()
    assert table[:4].tolist() == [0, IGNORED, 1, -1]


@pytest.mark.parametrize(
    ("classes", "ignore", "message"),
    [
        (None, [255], r"--classes: expected a number of classes or a file that names them; .* has no classes\.txt"),
        ("1", [255], r"--classes: expected 2 to 255 classes, got 1"),
        ("300", [255], r"--classes: expected indices up to 255, got 299"),
        ("3", [256], r"--ignore: expected values from 0 to 255, got 256"),
        ("nowhere.txt", [255], r"--classes: expected a number or a text file of class names, got nowhere\.txt"),
        ("twice", [255], r"names an index twice"),
    ],
)
def test_wrong_classes(tmp_path: Path, classes: str | None, ignore: list[int], message: str) -> None:
    (tmp_path / "twice").write_text("0 a\n0 b\n")
    with pytest.raises(UserError, match=message):
        find_labels(tmp_path, str(tmp_path / "twice") if classes == "twice" else classes, ignore)


def check_fails(folder: Path) -> str:
    """Check a training set of three classes; returns the error message, which is one line."""
    with pytest.raises(UserError) as error:
        check(open_segmentation(folder, "train", Labels(("sky", "road", "car"), (0, 1, 2), (11, 255))), "train")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_found_before_training(folder: Path, tmp_path: Path) -> None:
    label = folder / "labels" / "train" / "train_1.png"
    image = folder / "images" / "train" / "train_1.png"

    values = blocks(1)
    values[3, :5] = 200
    Image.fromarray(values.astype(np.uint8)).save(label)
    assert check_fails(folder) == (
        f"--train: {label} has the value 200 in 5 pixels; expected the 3 classes 0 to 2 or, ignored, 11, 255; "
        "correct it, or see --classes and --ignore"
    )
    wide = blocks(1).astype(np.uint16)
    wide[0, 0] = 1000
    Image.fromarray(wide).save(label)
    assert "has the value 1000 in 1 pixels" in check_fails(folder)
    Image.fromarray(np.zeros((12, 16), dtype=np.uint8)).save(label)
    assert f"{image} has 32 x 24 pixels and {label} 16 x 12" in check_fails(folder)
    label.unlink()
    assert check_fails(folder).startswith(f"--train: {image} has no label map: expected {label}; ")
    (folder / "labels" / "train" / "train_2.png").unlink()
    assert f"expected {label} (and 1 more)" in check_fails(folder)
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"--{split}: expected images/ and labels/ .* got .*nowhere, which is not"):
            open_segmentation(tmp_path / "nowhere", "train" if split == "train" else "val", THREE)
    for name in ("images", "labels"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"--val: no images in .*empty"):
        open_segmentation(tmp_path / "empty", "val", THREE)


def huge_png() -> bytes:
    """Header of a PNG with more pixels than Pillow accepts."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"not a picture", huge_png()])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_files_that_cannot_be_read_are_listed(folder: Path, part: str, content: bytes) -> None:
    good = check(open_segmentation(folder, "train", THREE), "train").pixels
    files = sorted((folder / part / "train").iterdir())
    files[1].write_bytes(content)
    pairs = open_segmentation(folder, "train", THREE)
    pixels, unreadable = check(pairs, "train")
    expected = "an image, cannot read it" if part == "images" else "a label map, cannot read it as PNG"
    assert unreadable.keys() == {1}
    assert unreadable[1].startswith(f"{files[1]}: expected {expected} (")
    assert "\n" not in unreadable[1]
    assert pixels.sum() == good.sum() * 2 / 3
    rest = pairs.without(unreadable)
    assert [file.stem for file in rest.images] == [file.stem for file in rest.label_maps] == ["train_0", "train_2"]


def test_label_maps_of_three_channels(folder: Path) -> None:
    for label in (folder / "labels" / "train").iterdir():
        Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(label)
    assert check_fails(folder) == (
        f"--train: none of the 3 pairs can be read; the first: {folder / 'labels' / 'train' / 'train_0.png'}: expected "
        "a label map of one channel of class indices, got 3 channels"
    )


def test_all_pixels_ignored(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "labels", "a", np.full((8, 8), 255))
    with pytest.raises(UserError, match="--val: every pixel of the 1 label maps is ignored"):
        check(open_segmentation(tmp_path, "val", THREE), "val")


def test_palettes_bits_and_16_bit_maps(tmp_path: Path) -> None:
    values = blocks(classes=2)
    write_pair(tmp_path / "images", tmp_path / "labels", "a", values)
    pairs = open_segmentation(tmp_path, "train", THREE)
    indexed = Image.fromarray(values.astype(np.uint8))
    indexed.putpalette([255, 0, 0, 0, 255, 0])
    kinds = {"P": indexed, "1": Image.fromarray(values.astype(bool)), "I;16": Image.fromarray(values.astype(np.uint16))}
    for mode, picture in kinds.items():
        assert picture.mode == mode
        picture.save(tmp_path / "labels" / "a.png")
        assert check(pairs, "train").pixels.tolist() == [(values == 0).sum(), (values == 1).sum(), 0]
        assert pairs.label_map(0).tolist() == values.tolist()


def test_real_label_maps(shared: Path) -> None:
    root = shared / "data" / "camvid100"
    labels = find_labels(root)
    assert labels.names == (
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian"),
        "Bicyclist",
    )
    assert labels.ignored == (11, 255)
    sizes = {}
    for split in ("train", "val"):
        pairs = open_segmentation(root, "train" if split == "train" else "val", labels)
        pixels, unreadable = check(pairs, split)
        assert not unreadable
        assert (pixels > 0).all()
        sizes[split] = len(pairs)
        assert 0.9 < pixels.sum() / (len(pairs) * 480 * 360) < 1  # the rest is unlabeled
    assert sizes == {"train": 60, "val": 20}


def test_values_in_files_become_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, tmp_path / "maps", "a", np.array([[1, 3, 255]]))
    pairs = SegmentationSet([tmp_path / "a.png"], [tmp_path / "maps" / "a.png"], Labels(("x", "y"), (1, 3)))
    assert len(pairs) == 1
    assert pairs.label_map(0).tolist() == [[0, 1, IGNORED]]
