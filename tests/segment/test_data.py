"""Images with label maps: where they are, what is told of mistakes, crops that keep pixels and labels together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from hardpatch.errors import UserError
from hardpatch.segment.batches import (
    SegmentationTransform,
    distort,
    evaluation_pairs,
    scaled_size,
    segmentation_batches,
)
from hardpatch.segment.data import IGNORED, Labels, SegmentationSet, check, find_labels, open_segmentation

THREE = Labels(("sky", "road", "car"), (0, 1, 2))


def write_pair(images: Path, labels: Path, stem: str, values: np.ndarray, ending: str = ".png") -> None:
    """An image whose pixels are 20 times its labels."""
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    values = values.astype(np.uint8)
    Image.fromarray(np.repeat((20 * values)[..., None], 3, axis=2)).save(images / f"{stem}{ending}")
    Image.fromarray(values).save(labels / f"{stem}.png")


def blocks(seed: int = 0, height: int = 24, width: int = 32, classes: int = 3) -> np.ndarray:
    """Label maps of 8-pixel squares."""
    squares = np.random.default_rng(seed).integers(0, classes, (height // 8, width // 8))
    return squares.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``images/train`` and ``images/val`` with ``labels`` likewise."""
    for split, number in (("train", 3), ("val", 2)):
        for k in range(number):
            write_pair(tmp_path / "images" / split, tmp_path / "labels" / split, f"{split}_{k}", blocks(k))
    return tmp_path


def test_layouts(folder: Path, tmp_path: Path) -> None:
    def stems(path: Path, split: str) -> list[str]:
        pairs = open_segmentation(path, "train" if split == "train" else "val", THREE)
        assert [image.stem for image in pairs.images] == [label.stem for label in pairs.labels]
        return [image.stem for image in pairs.images]

    assert stems(folder, "train") == ["train_0", "train_1", "train_2"]
    assert stems(folder, "val") == ["val_0", "val_1"]
    other = tmp_path / "other"
    write_pair(other / "val" / "images", other / "val" / "labels", "a", blocks(), ending=".jpg")
    assert stems(other, "val") == ["a"]
    assert stems(other / "val", "val") == ["a"]
    assert stems(other / "val", "train") == ["a"]  # a folder that has no parts is taken as it is
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
        counts = check(pairs, split)
        assert counts.sum() == 3
        assert counts[[0, 1, 149]].tolist() == [1, 1, 1]


def test_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 Sky\n1 Sign Symbol\n\n11 Unlabeled (ignore)\n")
    found = find_labels(tmp_path)
    assert found == Labels(("Sky", "Sign Symbol"), (0, 1), (11, 255))
    assert find_labels(tmp_path / "train") == found  # the folder above
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


def test_mistakes_are_found_before_training(folder: Path, tmp_path: Path) -> None:
    label = folder / "labels" / "train" / "train_1.png"
    image = folder / "images" / "train" / "train_1.png"

    def told() -> str:
        with pytest.raises(UserError) as error:
            check(open_segmentation(folder, "train", Labels(("sky", "road", "car"), (0, 1, 2), (11, 255))), "train")
        assert "\n" not in str(error.value)
        return str(error.value)

    values = blocks(1)
    values[3, :5] = 200
    Image.fromarray(values.astype(np.uint8)).save(label)
    assert told() == (
        f"--train: {label} has the value 200 in 5 pixels; expected the 3 classes 0 to 2 or, ignored, 11, 255; "
        "correct it, or see --classes and --ignore"
    )
    wide = blocks(1).astype(np.uint16)
    wide[0, 0] = 1000
    Image.fromarray(wide).save(label)
    assert "has the value 1000 in 1 pixels" in told()
    Image.fromarray(np.zeros((12, 16), dtype=np.uint8)).save(label)
    assert f"{image} has 32 x 24 pixels and {label} 16 x 12" in told()
    Image.fromarray(np.zeros((24, 32, 3), dtype=np.uint8)).save(label)
    assert f"{label} is no label map: expected one channel of class indices, got 3 channels" in told()
    label.write_bytes(b"no picture")
    assert f"{label} is no label map: cannot read it as PNG" in told()
    label.write_bytes((folder / "labels" / "train" / "train_0.png").read_bytes()[:60])
    assert f"{label} is no label map: cannot read it as PNG" in told()
    label.unlink()
    assert told().startswith(f"--train: {image} has no label map: expected {label}; ")
    (folder / "labels" / "train" / "train_2.png").unlink()
    assert f"expected {label} (and 1 more)" in told()
    image.write_bytes(b"no picture")
    Image.fromarray(blocks(1).astype(np.uint8)).save(label)
    Image.fromarray(blocks(2).astype(np.uint8)).save(folder / "labels" / "train" / "train_2.png")
    assert f"cannot read {image} as an image" in told()
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"--{split}: expected images/ and labels/ .* got .*nowhere, which is not"):
            open_segmentation(tmp_path / "nowhere", "train" if split == "train" else "val", THREE)
    for name in ("images", "labels"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"--val: no images in .*empty"):
        open_segmentation(tmp_path / "empty", "val", THREE)


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
        assert check(pairs, "train").tolist() == [(values == 0).sum(), (values == 1).sum(), 0]
        assert pairs.label_map(0).tolist() == values.tolist()


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(8, 40))
def test_crops_keep_pixels_and_labels_together(seed: int, height: int, width: int) -> None:
    labels = blocks(seed % 97).astype(np.uint8)
    image = np.repeat((20 * labels)[..., None], 3, axis=2)
    transform = SegmentationTransform((height, width), 24, scale=(1.0, 1.0), photometric=False, fill=(1, 2, 3))
    pixels, classes = transform(image, labels, np.random.default_rng(seed))
    assert pixels.shape == (3, height, width)
    assert classes.shape == (height, width)
    inside = classes != IGNORED
    assert inside.sum() == min(height, 24) * min(width, 32)
    for channel, fill in enumerate((1, 2, 3)):
        expected = torch.where(inside, 20 * classes.int(), fill)
        assert torch.equal(pixels[channel].int(), expected)


def test_scaled_crops_keep_pixels_and_labels_together() -> None:
    labels = blocks(5, 96, 128).astype(np.uint8)
    image = np.repeat((20 * labels)[..., None], 3, axis=2)
    transform = SegmentationTransform((64, 64), 96, photometric=False)
    shares = []
    for seed in range(20):
        pixels, classes = transform(image, labels, np.random.default_rng(seed))
        inside = classes != IGNORED
        same = (pixels[0].float() / 20).round() == classes
        shares.append((same & inside).sum() / inside.sum())
    assert min(shares) > 0.8  # the rest are edges, which bicubic smooths; a shift by a square would leave a third


def test_crops_of_one_class_are_drawn_anew() -> None:
    labels = np.zeros((40, 200), dtype=np.uint8)
    labels[:20, 150:], labels[20:, 150:] = 1, 2
    image = np.zeros((40, 200, 3), dtype=np.uint8)

    def too_uniform(cat_max_ratio: float) -> int:
        transform = SegmentationTransform((40, 40), 40, scale=(1, 1), cat_max_ratio=cat_max_ratio, photometric=False)
        crops = [transform(image, labels, np.random.default_rng(seed))[1] for seed in range(100)]
        return sum(int(np.bincount(crop.flatten()).max()) >= 0.75 * 1600 for crop in crops)

    assert too_uniform(1.0) > 60  # of 161 places 121 or so
    assert too_uniform(0.75) < 20  # 0.75 ** 10 of them, 6 %, never meet a good one


def test_distortion() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    distorted = [distort(image, np.random.default_rng(seed)) for seed in range(200)]
    assert all(found.shape == image.shape and found.dtype == np.uint8 for found in distorted)
    assert (
        2 <= sum(np.array_equal(found, image) for found in distorted) <= 40
    )  # one in 16: each is left out half the time
    gray = np.full((4, 4, 3), 100, dtype=np.uint8)
    for seed in range(50):
        found = distort(gray, np.random.default_rng(seed))
        assert (found == found[0, 0, 0]).all()  # gray has neither hue nor saturation
        assert (100 - 32) * 0.5 - 1 <= found[0, 0, 0] <= (100 + 32) * 1.5 + 1
    assert len({int(distort(gray, np.random.default_rng(seed))[0, 0, 0]) for seed in range(50)}) > 20
    one = image[..., :1]
    assert distort(one, np.random.default_rng(1)).shape == (6, 8, 1)


def test_batches_go_on_where_they_stopped(folder: Path) -> None:
    pairs = open_segmentation(folder, "train", THREE)
    transform = SegmentationTransform((16, 16), 24)

    def some(start: int, count: int, workers: int = 0) -> list[torch.Tensor]:
        batches = segmentation_batches(pairs, transform, batch_size=4, channels=3, seed=3, start=start, workers=workers)
        found = [next(batches) for _ in range(count)]
        batches.close()
        assert found[0].images.shape == (4, 3, 16, 16)
        assert found[0].images.dtype == found[0].labels.dtype == torch.uint8
        return [tensor for batch in found for tensor in (batch.images, batch.labels)]

    whole = some(0, 5)
    assert_close(some(2, 3), whole[4:])
    assert not torch.equal(whole[0], whole[2])


def test_files_that_break_after_the_check(folder: Path) -> None:
    pairs = open_segmentation(folder, "train", THREE)
    check(pairs, "train")
    for image in pairs.images:
        image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(UserError, match=r"--train: cannot decode .*train_\d\.png: .*; repair the file"):
        next(segmentation_batches(pairs, SegmentationTransform((8, 8), 24), batch_size=2, channels=3, seed=0))
    with pytest.raises(UserError, match=r"--val: cannot decode .*train_0\.png"):
        next(evaluation_pairs(pairs, 24, 3))


def test_whole_images_at_another_scale(folder: Path) -> None:
    pairs = open_segmentation(folder, "val", THREE)
    found = list(evaluation_pairs(pairs, 12, 3))
    assert [pair.image.shape for pair in found] == [(3, 12, 16)] * 2
    assert [pair.labels.shape for pair in found] == [(24, 32)] * 2
    assert found[1].labels.tolist() == blocks(1).tolist()
    assert scaled_size((360, 480), 96) == (96, 128)
    assert scaled_size((480, 361), 100, 0.5) == (66, 50)


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
        counts = check(pairs, split)
        assert (counts > 0).all()
        sizes[split] = len(pairs)
        assert 0.9 < counts.sum() / (len(pairs) * 480 * 360) < 1  # the rest is unlabeled
    assert sizes == {"train": 60, "val": 20}


def test_a_set_knows_its_values(tmp_path: Path) -> None:
    write_pair(tmp_path, tmp_path / "maps", "a", np.array([[1, 3, 255]]))
    pairs = SegmentationSet([tmp_path / "a.png"], [tmp_path / "maps" / "a.png"], Labels(("x", "y"), (1, 3)))
    assert len(pairs) == 1
    assert pairs.label_map(0).tolist() == [[0, 1, IGNORED]]
