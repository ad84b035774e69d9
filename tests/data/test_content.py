"""Digests of a list: the images it names and what it says of them count, its place does not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.data.content import path_digest

LINES = ("path,label,site", "a.png,cat,north", "b.png,dog,south")


def write(folder: Path, *lines: str) -> Path:
    """Write two images, and a list of them."""
    folder.mkdir()
    for number, name in enumerate("ab"):
        Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def test_the_place_of_a_list_does_not_count(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", *LINES), write(tmp_path / "other", *LINES)
    absolute = tmp_path / "absolute.csv"
    absolute.write_text("\n".join([LINES[0], *(f"{tmp_path / 'one'}/{line}" for line in LINES[1:])]) + "\n")
    assert path_digest(one) == path_digest(other) == path_digest(absolute) is not None


@pytest.mark.parametrize(
    "lines",
    [
        (LINES[0], "a.png,dog,north", LINES[2]),
        (LINES[0], LINES[1], "b.png,dog,north"),
        ("path,class,site", *LINES[1:]),
        (LINES[0], LINES[2], LINES[1]),
    ],
    ids=["a label", "another column", "the name of a column", "the order"],
)
def test_what_a_list_says_counts(lines: tuple[str, ...], tmp_path: Path) -> None:
    assert path_digest(write(tmp_path / "one", *LINES)) != path_digest(write(tmp_path / "other", *lines))
