"""Checks before training: what is read how, what is said, and what is refused."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardpatch.errors import UserError
from hardpatch.segment.check import Checked, check_sets
from hardpatch.segment.data import open_segmentation
from hardpatch.segment.labels import IGNORED, Labels, find_labels
from tests.segment.small import THREE, blocks

TWO = Labels(("background", "object"), (0, 1))


def write(folder: Path, *maps: Image.Image | np.ndarray, ending: str = ".png") -> Path:
    """Write label maps 0, 1, ... and a gray image for each."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k, content in enumerate(maps):
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        picture.save(folder / "labels" / f"{k}{ending}")
        Image.new("RGB", picture.size).save(folder / "images" / f"{k}.png")
    return folder


def check(folder: Path, labels: Labels, val: Path | None = None, **options: Any) -> Checked:
    sets = {"train": open_segmentation(folder, "train", labels)}
    if val is not None:
        sets["val"] = open_segmentation(val, "val", labels)
    return check_sets(sets, **options)


def refusal(folder: Path, labels: Labels, val: Path | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        check(folder, labels, val, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def bytes_(values: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def palette(values: np.ndarray, colors: Sequence[int]) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([*colors])
    return image


def test_what_is_said(tmp_path: Path) -> None:
    train = write(tmp_path / "a", bytes_([[0, 1, 7, 7]]), bytes_([[0, 0, 0, 1]]))
    val = write(tmp_path / "b", bytes_([[1, 1, 2, 0]]))
    labels = Labels(("sky", "road", "car", "sign"), (0, 1, 2, 3), (7, 255))
    checked = check(train, labels, val)
    assert checked.said == [
        f"--train: 2 pairs in {train / 'images'} and {train / 'labels'} (same stem)",
        "--train: label maps: 2 gray",
        f"--val: 1 pairs in {val / 'images'} and {val / 'labels'} (same stem)",
        "--val: label maps: 1 gray",
        "value 0 -> sky: train  50.00%  val  25.00%",
        "value 1 -> road: train  25.00%  val  50.00%",
        "value 2 -> car: train   0.00%  val  25.00%",
        "value 3 -> sign: train   0.00%  val   0.00%",
        "value 7 -> ignored: train  25.00%  val   0.00%",
    ]
    assert checked.warnings == [
        "--train: 2 classes without a pixel, not learned: car, sign",
        "--val: 1 classes without a pixel, not measured unless predicted: sign",
        "--val: has pixels of classes that --train lacks, IoU 0: car",
    ]
    assert {split: pixels.tolist() for split, pixels in checked.pixels.items()} == {
        "train": [4, 2, 0, 0],
        "val": [1, 2, 1, 0],
    }
    assert check(train, labels, train).warnings[-1] == (
        "2 of the 2 images of --val are in --train, too: the measures are too good for them"
    )
    many = Labels(tuple(f"c{k}" for k in range(60)), tuple(range(60)))
    values = np.array([range(60)], dtype=np.uint8)
    assert check(write(tmp_path / "c", values), many).said[-2:] == [
        "20 more classes: train  33.33%",
        "no pixel is ignored",
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_in_black_and_white(tmp_path: Path, dtype: type) -> None:
    white = np.iinfo(dtype).max
    train = write(tmp_path / "a", np.array([[0, white], [0, 0]], dtype), Image.fromarray(np.array([[True, False]])))
    val = write(tmp_path / "b", np.array([[white, white]], dtype))
    checked = check(train, TWO, val)
    said = f"masks of 0 and {white}: {white} is read as 'object' and not ignored; to ignore it, say --ignore {white}"
    assert said in checked.said
    assert checked.said[-1] == "no pixel is ignored"
    assert [checked.sets["train"].label_map(i).tolist() for i in range(2)] == [[[0, 1], [0, 0]], [[1, 0]]]
    assert checked.sets["val"].label_map(0).tolist() == [[1, 1]]
    assert checked.pixels["train"].tolist() == [4, 2]


def test_ignore_never_takes_the_only_other_class(tmp_path: Path) -> None:
    folder = write(tmp_path, bytes_([[0, 255, 0, 0]]))
    assert refusal(folder, find_labels(tmp_path, "2", ignore=[255])) == (
        "--train: only class 0 has pixels in the 1 label maps, expected two classes or more; found the value 0, class "
        "0 (75.0%); 255, ignored (25.0%); leave 255 out of --ignore"
    )
    (tmp_path / "classes.txt").write_text("background\nobject\n255 border (ignore)")
    (tmp_path / "classes.txt").write_text("0 background\n1 object\n255 border (ignore)")
    assert "only background has pixels" in refusal(folder, find_labels(tmp_path))
    three = refusal(folder, THREE)  # of three classes, 255 is not one
    assert "only sky has pixels in the 1 label maps" in three
    assert three.endswith("see --classes and --ignore")


def test_a_border_of_255_is_ignored(tmp_path: Path) -> None:
    checked = check(write(tmp_path, bytes_([[0, 1, 255]]), bytes_([[0, 0, 255]])), TWO)
    assert checked.sets["train"].label_map(0).tolist() == [[0, 1, IGNORED]]


def test_masks_of_both_kinds_are_refused(tmp_path: Path) -> None:
    ones, whites = write(tmp_path / "a", bytes_([[0, 1]])), write(tmp_path / "b", bytes_([[0, 255]]))
    message = refusal(ones, TWO, whites)
    assert message.startswith(f"--val: {whites / 'labels' / '0.png'} has the values 0 and 255, {ones / 'labels'}")
    assert message.endswith("write one value in all, or if 255 is to be ignored, say --ignore 255")
    assert check(ones, Labels(TWO.names, TWO.values, chosen=True), whites).pixels["val"].tolist() == [1, 0]


def test_smoothed_edges(tmp_path: Path) -> None:
    folder = write(tmp_path, bytes_([[0, 90, 128, 255]]), bytes_([[0, 0, 90, 255]]))
    assert refusal(folder, TWO) == (
        f"--train: {folder / 'labels' / '0.png'} and 1 other label maps have the value 90 in 2 pixels, 128 in 1 "
        "pixels; expected the 2 classes 0 to 1 or, ignored, 255; between 0 and 255 lie the edges of masks that were "
        "smoothed or saved as JPEG: with --threshold 128, 128 and more is 'object'"
    )
    checked = check(folder, find_labels(tmp_path, "2", threshold=128))
    assert checked.sets["train"].label_map(0).tolist() == [[0, 0, 1, 1]]
    assert checked.said[-4:] == [
        "--threshold 128: from 128 on a pixel is class 1, below it is class 0, none is ignored; 37.50% of the pixels "
        "are neither 0 nor white",
        "value below 128 -> class 0: train  62.50%",
        "value from 128 -> class 1: train  37.50%",
        "no pixel is ignored",
    ]


def test_jpeg_masks_need_a_threshold(tmp_path: Path) -> None:
    truth = np.zeros((16, 16), dtype=bool)
    truth[4:12, 4:12] = True
    folder = write(tmp_path, truth.astype(np.uint8) * 255, ending=".jpg")
    assert "got JPEG, which changes the values; save it as PNG, or for a mask of two classes see" in refusal(
        folder, TWO
    )
    checked = check(folder, find_labels(tmp_path, "2", threshold=128))
    assert (checked.sets["train"].label_map(0) == truth).all()
    assert checked.pixels["train"].tolist() == [192, 64]


def test_a_threshold_needs_gray(tmp_path: Path) -> None:
    labels = find_labels(tmp_path, "2", threshold=1)
    bits = Image.fromarray(np.array([[True, False]]))
    assert check(write(tmp_path / "a", bits), labels).pixels["train"].tolist() == [1, 1]
    wide = check(write(tmp_path / "b", np.arange(0, 60000, 2, dtype=np.uint16)[None]), labels)
    assert wide.pixels["train"].tolist() == [1, 29999]
    reds = palette(bytes_([[0, 1]]), [0, 0, 0, 128, 0, 0])
    assert "expected gray masks, " in refusal(write(tmp_path / "c", reds), labels)
    assert "has a palette" in refusal(write(tmp_path / "d", palette(bytes_([[0, 1]]), [255] * 3 + [0] * 3)), labels)
    assert "has colors" in refusal(write(tmp_path / "e", np.array([[[9, 0, 0]]], np.uint8)), labels)


def test_palettes_that_differ(tmp_path: Path) -> None:
    """The same picture, saved with colors in another order, as programs do that choose palettes by themselves."""
    values = bytes_([[0, 1, 2, 2]])
    same = palette(values, [0, 0, 0, 128, 0, 0, 0, 128, 0])
    other = palette((values + 1) % 3, [0, 128, 0, 0, 0, 0, 128, 0, 0])
    folder = write(tmp_path, same, other)
    assert refusal(folder, THREE).startswith(
        f"--train: the palettes of {folder / 'labels' / '0.png'} and {folder / 'labels' / '1.png'} differ: index 0 is "
        "0 0 0 and 0 128 0; to read such maps by color, give a line of classes.txt for each class: R G B name"
    )
    (tmp_path / "classes.txt").write_text("0 0 0 sky\n128 0 0 road\n0 128 0 car")
    checked = check(folder, find_labels(tmp_path))
    assert [checked.sets["train"].label_map(i).tolist() for i in range(2)] == [values.tolist(), values.tolist()]
    assert "color 128 0 0 -> road: train  25.00%" in checked.said
    by_index = check(write(tmp_path / "b", same, palette(values[:, :2], [0, 0, 0, 128, 0, 0])), THREE)
    assert by_index.sets["train"].label_map(1).tolist() == [[0, 1]]
    assert "value 1 (128 0 0) -> road: train  33.33%" in by_index.said
    moved = palette(bytes_([[2]]), [9, 9, 9, 0, 0, 9, 128, 0, 0])
    assert "the color 128 0 0 is index 1 and 2" in refusal(
        write(tmp_path / "c", palette(values[:, :2], [0] * 3 + [128, 0, 0]), moved), THREE
    )


def test_maps_in_colors(tmp_path: Path) -> None:
    colors = bytes_([[0, 0, 0], [128, 0, 0], [0, 128, 0], [255, 255, 255]])
    folder = write(tmp_path, colors[None, [0, 1, 2, 0]], colors[None, [0, 0]])
    assert refusal(folder, THREE) == (
        f"--train: 1 of 2 label maps have colors, the first {folder / 'labels' / '0.png'}, and the classes have none; "
        "found 0 0 0 (50.0%), 0 128 0 (25.0%), 128 0 0 (25.0%); expected a line of classes.txt for each class: "
        "R G B name, such as '128 0 0 road'"
    )
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    assert "more; so many colors are a sign of resampling" in refusal(write(tmp_path / "noise", noise), THREE)
    (tmp_path / "classes.txt").write_text("0 0 0 sky\n128 0 0 road\n0 128 0 car\n255 255 255 nothing (ignore)")
    labels = find_labels(tmp_path)
    gray, bits = bytes_([[0, 255]]), Image.fromarray(np.array([[True, False]]))
    folder = write(tmp_path, colors[None, [0, 1, 2, 3]], colors[None, [0, 0]], gray, bits)
    checked = check(folder, labels)
    maps = [checked.sets["train"].label_map(i).tolist() for i in range(4)]
    assert maps == [[[0, 1, 2, IGNORED]], [[0, 0]], [[0, IGNORED]], [[IGNORED, 0]]]
    assert checked.said[-1] == "color 255 255 255 -> ignored: train  30.00%"
    unknown = write(tmp_path, bytes_([[0, 0, 0], [1, 2, 3]])[None])
    assert "has the color 1 2 3 in 1 pixels; expected the 3 colors of the classes; add a line" in refusal(
        unknown, labels
    )
    wide = write(tmp_path, colors[None, [0, 1, 2, 3]], np.array([[256]], np.uint16))
    assert "has the color" in refusal(wide, labels)
    by_value = check(write(tmp_path / "gray", bytes_([[0, 1, 2]])), labels)
    assert by_value.sets["train"].label_map(0).tolist() == [[0, 1, 2]]


def test_gray_maps_that_are_saved_in_colors(tmp_path: Path) -> None:
    values = blocks()
    checked = check(write(tmp_path, np.repeat(values[..., None], 3, axis=2).astype(np.uint8)), THREE)
    assert checked.said[1] == "--train: label maps: 1 gray saved as RGB"
    assert checked.sets["train"].label_map(0).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        (
            [[0, 1, 2, 200]],
            "3",
            "has the value 200 in 1 pixels; expected the 3 classes 0 to 2 or, ignored, 255; correct",
        ),
        ([[1, 2, 3]], "3", "if 3 is the last class and 0 is none, --reduce_zero_label"),
        ([[0, 1, 2, 3]], "3", "if 3 is the last class and 0 is to be ignored, --reduce_zero_label"),
        (
            [[0, 1, 26001]],
            "3",
            "may be class * 1000 + instance, as Cityscapes' instanceIds; take the maps of class ids",
        ),
        ([[0, 38, 0]], "2", "for 38 as 'class 1', write '0 class 0' and '38 class 1' in classes.txt"),
        ([[0, 85, 170]], "3", "may be the ids 0, 1, 2, ... of gray PNGs of 4 or 2 bits, which decoders multiply; save"),
        ([[*range(20)]], "2", "9 in 1 pixels and 10 more; expected"),
    ],
)
def test_values_that_are_no_class(tmp_path: Path, values: Any, classes: str, message: str) -> None:
    assert message in refusal(write(tmp_path, np.array(values, dtype=np.uint16)), find_labels(tmp_path, classes))


def test_listed_values_of_16_bits(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("7 road\n26001 car\n65535 nothing (ignore)")
    folder = write(tmp_path, np.array([[7, 26001, 65535]], dtype=np.uint16))
    assert check(folder, find_labels(tmp_path)).sets["train"].label_map(0).tolist() == [[0, 1, IGNORED]]


def test_sizes(folder: Path) -> None:
    image, label = (folder / part / "train" / "train_1.png" for part in ("images", "labels"))
    Image.fromarray(np.zeros((12, 16), dtype=np.uint8)).save(label)
    assert refusal(folder, THREE) == (
        f"--train: 1 of 3 label maps have another size than their image, the first: {image} and {label}: 32 x 24 and "
        "16 x 12 pixels"
    )


def test_maps_of_turned_photographs(tmp_path: Path) -> None:
    """A map that fits a photograph only before or only after it is turned upright: one of the two is refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    messages = []
    for name, shape in (("stored", (24, 32)), ("upright", (32, 24))):
        folder = write(tmp_path / name, blocks(0, *shape).astype(np.uint8))
        Image.new("RGB", (32, 24)).save(folder / "images" / "0.jpg", exif=exif)
        (folder / "images" / "0.png").unlink()
        try:
            checked = check(folder, THREE)
        except UserError as error:
            messages.append(str(error))
        else:
            assert "--train: 1 images have an EXIF orientation; their label maps have to be" in checked.warnings[0]
    assert len(messages) == 1
    assert "the image has the EXIF orientation 6, and its label map fits it only turned the other way" in messages[0]


def huge_png() -> bytes:
    """Header of a PNG with more pixels than Pillow accepts."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"not a picture", huge_png(), None])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_files_that_cannot_be_read_are_listed(folder: Path, part: str, content: bytes | None) -> None:
    good = check(folder, THREE).pixels["train"]
    files = sorted((folder / part / "train").iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-30] if content is None else content)  # or the end is missing
    calls: list[tuple[int, int | None]] = []
    checked = check(folder, THREE, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert checked.unreadable["train"].keys() == {1}
    assert checked.unreadable["train"][1].startswith(f"{files[1]}: ")
    assert "\n" not in checked.unreadable["train"][1]
    assert checked.pixels["train"].sum() == good.sum() * 2 / 3
    rest = checked.sets["train"]
    assert [file.stem for file in rest.images] == [file.stem for file in rest.label_maps] == ["train_0", "train_2"]
    assert "1 of 3 images (33.33%) cannot be decoded" in refusal(folder, THREE, max_bad_fraction=0.3)
    for file in files:
        file.write_bytes(b"")
    assert refusal(folder, THREE).startswith(f"--train: none of the 3 pairs can be read; the first: {files[0]}")


def test_all_pixels_ignored(tmp_path: Path) -> None:
    train, val = write(tmp_path / "a", bytes_([[0, 1]])), write(tmp_path / "b", np.full((8, 8), 255, np.uint8))
    assert refusal(train, THREE, val).startswith("--val: every pixel is ignored in the 1 label maps, ")


def test_real_label_maps(shared: Path) -> None:
    root = shared / "data" / "camvid100"
    labels = find_labels(root)
    assert labels.names == (
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian"),
        "Bicyclist",
    )
    assert labels.ignored == (11, 255)
    checked = check(root, labels, root, workers=2)
    assert checked.warnings == []
    for split, number in (("train", 60), ("val", 20)):
        assert len(checked.sets[split]) == number
        assert not checked.unreadable[split]
        assert 0.9 < checked.pixels[split].sum() / (number * 480 * 360) < 1  # the rest is unlabeled
