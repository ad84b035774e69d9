"""Chunks of the package litdata, in a folder and in a store: read at random, in our order, and nothing unpickled."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hardpatch.data import litdata_chunks
from hardpatch.data.loader import train_batches
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.row_groups import choose_order
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from tests.data.small import TRAIN, assert_same, one_line, png, take, values

LEAKS = "ignore::pytest.PytestUnraisableExceptionWarning"
"""litdata leaves files open."""


def write(folder: Path, items: list[Any], chunk: int = 4) -> Path:
    pytest.importorskip("litdata", reason="needs the extra litdata")
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_size=chunk)
    for k, item in enumerate(items):
        writer[k] = item
    writer.done()
    writer.merge(1)
    return folder


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litdata_chunks, "find_spec", lambda name: None)
    (tmp_path / "index.json").write_text('{"chunks": [], "config": {}}')
    for path in (str(tmp_path), "s3://bucket/images"):
        with pytest.raises(UserError, match=r"needs the package litdata: pip install 'hardpatch\[litdata\]'"):
            open_source(path)


@pytest.mark.filterwarnings(LEAKS)
@pytest.mark.parametrize("store", ["", "local:"])
def test_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setenv("DATA_OPTIMIZER_CACHE_FOLDER", str(tmp_path / "cache"))
    path = f"{store}{write(tmp_path / 'set', [{'image': png(k), 'label': k % 2} for k in range(22)])}"
    source = open_source(path)
    assert values(source) == list(range(22))
    assert source.encoded(13) == png(13)
    assert source.classes is None
    assert source.name(3) == f"{path} item 3"
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy)[20] == 20
    groups, _ = choose_order(source, "row_groups", 2)
    assert groups is not None
    assert groups.ends.tolist() == [4, 8, 12, 16, 20, 22]
    expected = take(train_batches(source, TRAIN, batch_size=4, seed=3, groups=groups), 12)
    options: dict[str, Any] = {"batch_size": 4, "seed": 3, "groups": groups, "workers": 1}
    assert_same(expected[5:], take(train_batches(source, TRAIN, start=5, **options), 7))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    path = write(tmp_path / "set", [{"image": png(k), "extra": Evil()} for k in range(3)])
    assert values(open_source(path)) == [0, 1, 2]
    assert not (tmp_path / "evil").exists()


def test_chunks_that_hold_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one field with files of images") as error:
        open_source(write(tmp_path / "set", [{"label": k} for k in range(3)]))
    one_line(error)


def test_a_chunk_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "set", [png(k) for k in range(9)])
    source = open_source(path)
    last = sorted(path.glob("*.bin"))[1]
    last.write_bytes(last.read_bytes()[:200])
    assert source.encoded(8) == png(8)
    with pytest.raises(UndecodableImage, match=f"{path} item 6: "):
        source.image(6)
