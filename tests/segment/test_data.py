"""Images with label maps: folder layouts, pairs, and maps as classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.data.reading import UndecodableImage
from hardpatch.errors import UserError
from hardpatch.segment.data import SegmentationSet, open_segmentation
from hardpatch.segment.labels import IGNORED, Labels
from tests.segment.small import THREE, blocks, write_pair


def stems(path: Path, split: str) -> list[str]:
    pairs = open_segmentation(path, "train" if split == "train" else "val", THREE)
    return [image.stem for image in pairs.images]


def test_layouts(folder: Path, tmp_path: Path) -> None:
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
    masks = tmp_path / "of_masks"
    write_pair(masks / "images", masks / "masks", "c", blocks())
    assert stems(masks, "val") == ["c"]


def test_folders_within_folders(tmp_path: Path) -> None:
    """Cityscapes' names, with linked folders."""
    for city in ("aachen", "ulm"):
        images, labels = tmp_path / "images" / "train" / city, tmp_path / "labels" / "train" / city
        write_pair(images, labels, "0", blocks())
        (images / "0.png").rename(images / f"{city}_0_leftImg8bit.png")
        (labels / "0.png").rename(labels / f"{city}_0_gtFine_labelIds.png")
        (labels / f"{city}_0_gtFine_color.png").write_bytes(b"")
    pairs = open_segmentation(tmp_path, "train", THREE)
    assert [file.name for file in pairs.images] == ["aachen_0_leftImg8bit.png", "ulm_0_leftImg8bit.png"]
    assert [file.name for file in pairs.label_maps] == ["aachen_0_gtFine_labelIds.png", "ulm_0_gtFine_labelIds.png"]
    labels = tmp_path / "labels" / "train"
    assert pairs.said == (
        f"2 pairs in {tmp_path / 'images' / 'train'} and {labels} (stem without _leftImg8bit + _gtFine_labelIds)",
        f"left out 2 label maps without an image: {labels / 'aachen' / 'aachen_0_gtFine_color.png'}, "
        f"{labels / 'ulm' / 'ulm_0_gtFine_color.png'}",
    )


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_pair(tmp_path / "images", tmp_path / "masks", "a", blocks())
    write_pair(tmp_path / "images", tmp_path / "labels", "a", blocks())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text("")
    (tmp_path / "images" / "a.xcf").write_bytes(b"")
    pairs = open_segmentation(tmp_path, "train", THREE)
    assert [file.parent.name for file in pairs.label_maps] == ["labels"]
    assert pairs.said[1:] == (
        f"not read, since labels/ is: {tmp_path / 'masks'}",
        f"left out 1 files in {tmp_path / 'images'} that are no images: .xcf 1",
    )


def fails(folder: Path, suffix: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        open_segmentation(folder, "train", THREE, suffix)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_without_a_map_and_with_two(folder: Path) -> None:
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    Image.fromarray(blocks().astype(np.uint8)).save(labels / "train_1_mask.png")
    assert fails(folder) == (
        f"--train: 1 of 3 images have more than one label map: {images / 'train_1.png'} has "
        f"{labels / 'train_1.png'} and {labels / 'train_1_mask.png'}; keep one of them, or see --label_suffix"
    )
    assert [file.name for file in open_segmentation(folder, "train", THREE, "").label_maps] == [
        *("train_0.png", "train_1.png", "train_2.png")
    ]
    assert fails(folder, "_mask").startswith(
        f"--train: 2 of 3 images have no label map: {images / 'train_0.png'}, {images / 'train_2.png'}; expected "
        f"{labels / 'train_0_mask.png'}; add the maps, remove the images, or --label_suffix is _mask"
    )
    for file in labels.iterdir():
        file.unlink()
    for k in (3, 4):
        write_pair(images, folder / "elsewhere", f"train_{k}", blocks())
    message = fails(folder)
    assert "5 of 5 images have no label map" in message
    assert "train_2.png and 2 more; expected" in message
    assert ".png, or the stem with _mask, " in message


def test_two_images_of_one_map(folder: Path) -> None:
    images = folder / "images" / "train"
    Image.new("RGB", (32, 24)).save(images / "train_1.jpg")
    assert fails(folder).startswith(
        f"--train: 1 label maps belong to more than one image: {folder / 'labels' / 'train' / 'train_1.png'} to "
        f"{images / 'train_1.jpg'} and {images / 'train_1.png'}; rename"
    )


def test_folders_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"--{split}: expected images/ and labels/ .* got .*nowhere, which is not"):
            open_segmentation(tmp_path / "nowhere", "train" if split == "train" else "val", THREE)
    for name in ("images", "labels"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"--val: no images in .*empty"):
        open_segmentation(tmp_path / "empty", "val", THREE)


def test_images_of_train_do_not_become_those_of_val(tmp_path: Path) -> None:
    write_pair(tmp_path / "images" / "train", tmp_path / "labels" / "train", "a", blocks())
    assert stems(tmp_path, "train") == ["a"]
    with pytest.raises(UserError, match=r"--val: expected images/ and labels/ .* with or without a subfolder val"):
        open_segmentation(tmp_path, "val", THREE)


def test_values_in_files_become_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, tmp_path / "maps", "a", np.array([[1, 3, 255]]))
    pairs = SegmentationSet([tmp_path / "a.png"], [tmp_path / "maps" / "a.png"], Labels(("x", "y"), (1, 3)))
    assert len(pairs) == 1
    assert pairs.label_map(0).tolist() == [[0, 1, IGNORED]]
    for values, pixels in (([[1, 2, 0]], 2), ([[1, 3, 40000]], 1)):  # a file that changed after it was checked
        Image.fromarray(np.array(values, dtype=np.uint16)).save(tmp_path / "maps" / "a.png")
        with pytest.raises(UndecodableImage, match=rf"a\.png: a value in {pixels} pixels is no class"):
            pairs.label_map(0)
    Image.fromarray(np.array([[[1, 3, 0]]], dtype=np.uint8)).save(tmp_path / "maps" / "a.png")
    with pytest.raises(UndecodableImage, match=r"a\.png: has colors, and had none"):
        pairs.label_map(0)
