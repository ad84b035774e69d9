import pickle
from pathlib import Path

import pytest

from hardpatch.data.demo import DemoSource
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.sources import Subset, open_images, open_source
from hardpatch.errors import UserError
from tests.data.small import names, one_line, png, values, write_parquet, write_png


def test_several_paths_are_one_source(tmp_path: Path) -> None:
    write_png(tmp_path / "tree" / "cat" / "a.png", 1)
    (tmp_path / "tree" / "notes.txt").write_text("x")
    table = write_parquet(tmp_path / "t.parquet", [png(2), png(3)], [0, 1])
    single = write_png(tmp_path / "z.png", 4)
    source = open_images([single, table, tmp_path / "tree"])
    assert values(source) == [4, 2, 3, 1]
    assert names(source)[0] == str(single)
    assert source.classes is None
    assert [source.label(i) for i in range(4)] == [None] * 4
    assert [entry.first for entry in source.skipped] == [str(tmp_path / "tree" / "notes.txt")]
    with pytest.raises(IndexError):
        source.name(4)


def test_subset(tmp_path: Path) -> None:
    for k in range(4):
        write_png(tmp_path / f"class{k}" / f"{k}.png", k)
    (tmp_path / "notes.txt").write_text("x")
    whole = open_source(tmp_path)
    subset = Subset(whole, [3, 1])
    assert values(subset) == [3, 1]
    assert names(subset) == [whole.name(3), whole.name(1)]
    assert [subset.label(i) for i in range(2)] == [3, 1]
    assert (subset.classes, subset.skipped) == (whole.classes, whole.skipped)


def test_single_path_keeps_its_labels(tmp_path: Path) -> None:
    write_png(tmp_path / "cat" / "a.png")
    assert open_images([tmp_path]).classes == ("cat",)


def test_demo_set() -> None:
    source = open_source("demo:test")
    assert isinstance(source, DemoSource)
    assert source.split == "test"
    default = open_source(None)
    assert isinstance(default, DemoSource)
    assert default.split == "train"


def test_sources_survive_pickling(tmp_path: Path, residency: str) -> None:
    write_png(tmp_path / "tree" / "cat" / "a.png", 1)
    table = write_parquet(tmp_path / "t.parquet", [png(2) * 1 for _ in range(9)], [0] * 9)
    for source in (open_source(tmp_path / "tree"), open_source(table), open_images([tmp_path / "tree", table])):
        values(source)
        copy = pickle.loads(pickle.dumps(source))
        assert values(copy) == values(source)
        assert names(copy) == names(source)
        assert copy.classes == source.classes


# mistakes


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_source(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in one_line(error)
    assert "no such file or folder" in one_line(error)


def test_folder_without_images_lists_the_extensions(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(b"GIF89a")
    with pytest.raises(UserError) as error:
        open_source(tmp_path)
    for extension in (*EXTENSIONS, "*.parquet"):
        assert extension in one_line(error)


def test_file_with_another_extension(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt: expected an image"):
        open_source(tmp_path / "a.txt")


def test_unknown_half_of_the_demo_set() -> None:
    with pytest.raises(UserError, match=r"demo:valid.*demo:train or demo:test"):
        open_source("demo:valid")


def test_no_images_given() -> None:
    with pytest.raises(UserError, match="no images given"):
        open_images([])
