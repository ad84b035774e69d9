from pathlib import Path

import pytest

from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.measure.object_masks import find_masks, mask_reader
from tests.measure.brightness_model import gray_patches, left_half, write_pictures


def test_masks_are_found_by_stem_and_folder(tmp_path: Path) -> None:
    pictures = {"x/1.jpg": gray_patches(), "x/2.jpg": gray_patches(), "y/1.jpg": gray_patches()}
    source = open_source(write_pictures(tmp_path / "in", pictures))
    masks = write_pictures(tmp_path / "masks", {"y/1.png": left_half(), "x/1.png": left_half(), "2.png": left_half()})
    assert find_masks(source, masks) == [masks / "x/1.png", masks / "2.png", masks / "y/1.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x/1.png", "y/1.png"], r"2\.jpg .*got no such file"),
        (["1.png", "2.png"], r"y/1\.jpg .*got .*1\.png, which is not this image's alone"),
        (["x/1.png", "x/1.bmp", "2.png", "y/1.png"], r"x/1\.jpg .*not this image's alone"),
    ],
)
def test_a_missing_or_ambiguous_mask_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    pictures = {"x/1.jpg": gray_patches(), "x/2.jpg": gray_patches(), "y/1.jpg": gray_patches()}
    source = open_source(write_pictures(tmp_path / "in", pictures))
    write_pictures(tmp_path / "masks", dict.fromkeys(names, left_half()))
    with pytest.raises(UserError, match=message):
        mask_reader(source, tmp_path / "masks", (16, 16))


def test_a_source_without_masks_has_no_reader(tmp_path: Path) -> None:
    source = open_source(write_pictures(tmp_path, {"a.png": gray_patches()}))
    assert mask_reader(source, None, (16, 16)) is None
    assert mask_reader(open_source("demo:test"), None, (32, 32)) is not None


def test_a_subset_has_the_masks_of_its_source() -> None:
    demo = open_source("demo:test")
    whole, part = (mask_reader(source, None, (32, 32)) for source in (demo, Subset(Subset(demo, [4, 7, 9]), [2, 0])))
    assert whole is not None
    assert part is not None
    assert [(part(k) == whole(index)).all() for k, index in enumerate((9, 4))] == [True, True]
    assert not (part(0) == whole(4)).all()


def test_a_subset_without_masks_has_no_reader(tmp_path: Path) -> None:
    source = open_source(write_pictures(tmp_path, {"a.png": gray_patches()}))
    assert mask_reader(Subset(source, [0]), None, (16, 16)) is None
