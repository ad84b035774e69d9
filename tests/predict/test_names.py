"""Names of files that are written for images of any source."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.folders import FileSource
from hardpatch.predict.names import map_names, relative_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/a/b/x.jpg", "/a/c/y.jpg"], ["b/x.jpg", "c/y.jpg"]),
        (["/a/b/x.jpg"], ["x.jpg"]),
        (["x.tar/1.jpg", "x.tar/../../2.jpg"], ["1.jpg", "2.jpg"]),
        (["s.parquet row 0 (f/1.jpg)", "s.parquet row 7 (g/2.jpg)"], ["f/1.jpg", "g/2.jpg"]),
        (["s.parquet row 0", "s.parquet row 7"], ["000000", "000007"]),
        (["demo:test/00000", "demo:test/00001"], ["00000", "00001"]),
        (["a row 3.jpg", ".."], ["a row 3.jpg", "image"]),
    ],
)
def test_names_below_the_common_folder(names: list[str], expected: list[str]) -> None:
    assert relative_names(FileSource("", names)) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/x.jpg", "b/x.jpg"], ["a/x.png", "b/x.png"]),
        (["x.jpg", "x.png"], ["x.jpg.png", "x.png.png"]),
        (["x.jpg", "x.jpg"], ["x.jpg.png", "000001.png"]),
        (["000007", "v1.2"], ["000007.png", "v1.png"]),
        ([f"{'x' * 254}"], ["000000.png"]),
    ],
)
def test_names_of_label_maps(names: list[str], expected: list[str]) -> None:
    assert map_names(names) == expected


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_every_name_is_its_own_and_below_the_folder(names: list[str]) -> None:
    files = map_names(relative_names(FileSource("", names)))
    assert len(set(files)) == len(names)
    for file in files:
        assert file.endswith(".png")
        assert not os.path.isabs(file)
        assert ".." not in Path(file).parts
