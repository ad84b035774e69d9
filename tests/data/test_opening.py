"""Patterns, and several paths as one source."""

from pathlib import Path

import pytest

from hardpatch.data.left_out import LeftOut, counts, joined
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import open_images, open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from tests.data.small import EVAL, names, values, write_parquet, write_png
from tests.data.small import png as encoded
from tests.data.test_archives import TREE, write_tar, write_zip


def labeled(source: object) -> list[str]:
    return [source.classes[source.label(i)] for i in range(len(source))]  # type: ignore[attr-defined, arg-type]


def test_a_pattern_of_images(tmp_path: Path) -> None:
    for k, name in enumerate(["cat/a.png", "dog/b.jpg", "dog/deeper/c.png", "d.png"]):
        write_png(tmp_path / name, k)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    flat = open_source(f"{tmp_path}/*.png")
    assert (values(flat), flat.classes) == ([3], None)
    tree = open_source(f"{tmp_path}/*/*.png")
    assert (names(tree), tree.classes) == ([str(tmp_path / "cat" / "a.png")], None), "one file is one image"
    assert open_source(f"{tmp_path}/*/*").classes == ("cat", "dog")
    assert values(open_source(f"{tmp_path}/*/*")) == [0, 1, 2], "folders that match are read to their depths"
    assert values(open_source(f"{tmp_path}/**/*.png")) == [0, 3, 2]
    assert "left out 1 files that are not images (1 .txt" in summarize(open_source(f"{tmp_path}/*/*"))
    assert labeled(open_source(f"{tmp_path}/[cd]*/[ab]*")) == ["cat", "dog"]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    assert values(open_source(write_png(tmp_path / "a[1].png", 5))) == [5]


def test_a_pattern_without_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*\.png: no file or folder matches this pattern"):
        open_source(f"{tmp_path}/*.png")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(UserError, match=r"\*\.txt: no images"):
        open_source(f"{tmp_path}/*.txt")


def test_classes_of_several_paths_are_brought_together_by_name(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", TREE)
    write_png(tmp_path / "tree" / "ant" / "a.png", 7)
    write_png(tmp_path / "tree" / "dog" / "b.png", 8)
    write_parquet(tmp_path / "c.parquet", [encoded(9)], [1], ["dog", "cat"])
    source = open_images([tmp_path / "a.zip", tmp_path / "tree", tmp_path / "c.parquet"])
    assert values(source) == [1, 3, 2, 7, 8, 9]
    assert source.classes == ("ant", "cat", "dog")
    assert labeled(source) == ["cat", "cat", "dog", "ant", "dog", "cat"]
    assert summarize(source) == "6 images, 3 classes, classes of 3 paths brought together by name"
    assert values(open_source([str(tmp_path / "tree")])) == [7, 8]


def test_several_paths_without_common_classes_say_so(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", TREE)
    write_png(tmp_path / "flat" / "a.png", 7)
    numbers = write_parquet(tmp_path / "c.parquet", [encoded(9)], [1])
    source = open_images([tmp_path / "a.zip", tmp_path / "flat"])
    assert source.classes is None
    assert source.label(0) is None
    assert summarize(source) == f"4 images, no labels ({tmp_path}/flat: no labels)"
    source = open_images([tmp_path / "a.zip", numbers])
    assert source.unlabeled == f"the classes of {numbers} are numbers and those of {tmp_path}/a.zip names"


def test_workers_read_archives_and_tables(tmp_path: Path) -> None:
    paths = [
        write_zip(tmp_path / "a.zip", TREE),
        write_tar(tmp_path / "b.tar", TREE),
        write_parquet(tmp_path / "c.parquet", [encoded(k) for k in (1, 3, 2)], [0, 0, 1], ["cat", "dog"]),
    ]
    for workers in (0, 1):
        (batch,) = eval_batches(open_images(paths), EVAL, batch_size=16, workers=workers)
        assert batch.images[:, 0, 0, 0].tolist() == [1, 3, 2] * 3
        assert batch.labels.tolist() == [0, 0, 1] * 3


def test_what_is_left_out_is_counted_by_reason() -> None:
    entries = joined(
        [LeftOut("links", 2, "a"), LeftOut("files that are not images", 1, "x", "1 .txt"), LeftOut("links", 3, "b")]
    )
    assert [str(entry) for entry in entries] == [
        "5 links (the first: a)",
        "1 files that are not images (1 .txt; the first: x)",
    ]
    assert counts(entries, 4, "train, ") == {
        "train, not images": 1,
        "train, links": 5,
        "train, undecodable": 4,
    }
