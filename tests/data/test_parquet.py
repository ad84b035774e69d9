import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardpatch.data import parquet
from hardpatch.data.parquet import ParquetSource
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from tests.data.small import one_line, png, values, write_parquet


def test_parquet_in_the_hugging_face_layout(tmp_path: Path, residency: str) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", [png(k) for k in range(11)], [k % 3 for k in range(11)], ["x", "y", "z"]
    )
    source = open_source(path)
    assert len(source) == 11
    assert source.classes == ("x", "y", "z")
    assert values(source) == list(range(11))
    assert [source.label(i) for i in range(4)] == [0, 1, 2, 0]
    assert source.name(5) == f"{path} row 5 (5.png)"
    order = np.random.default_rng(0).integers(11, size=40)
    assert [int(source.image(int(i))[0, 0, 0]) for i in order] == order.tolist()


def test_folder_of_parquet_files_in_sorted_order(tmp_path: Path, residency: str) -> None:
    write_parquet(tmp_path / "train-00001.parquet", [png(k) for k in range(7, 12)], [1] * 5)
    write_parquet(tmp_path / "train-00000.parquet", [png(k) for k in range(7)], [0] * 7)
    (tmp_path / "README.md").write_text("x")
    source = open_source(tmp_path)
    assert values(source) == list(range(12))
    assert [source.label(i) for i in range(12)] == [0] * 7 + [1] * 5
    assert source.name(11) == f"{tmp_path / 'train-00001.parquet'} row 4 (4.png)"
    assert source.classes == ("0", "1")


def test_only_the_last_row_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(parquet, "CACHED_ROW_GROUPS", 2)
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(k) for k in range(20)]))
    assert isinstance(source, ParquetSource)
    assert len(source._cache) == 0
    values(source)
    assert list(source._cache) == [3, 4]


@pytest.mark.parametrize("dtype", [pa.binary(), pa.large_binary()])
def test_plain_binary_column_without_labels(tmp_path: Path, residency: str, dtype: pa.DataType) -> None:
    pq.write_table(pa.table({"image": pa.array([png(k) for k in range(5)], dtype)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert values(source) == list(range(5))
    assert source.classes is None
    assert source.label(0) is None
    assert source.name(3) == f"{tmp_path / 'a.parquet'} row 3"


def test_missing_labels_bytes_and_names(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(1), None, b"junk"], [None, 2, 0], ["only", "two"]))
    assert [source.label(i) for i in range(3)] == [None, 1, 0]
    assert source.classes == ("0", "2"), "two names cannot stand for a label 2"
    assert any("2 class names and a label 2: named by number" in note for note in source.notes)
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 1 \(1\.png\): no bytes"):
        source.image(1)
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 2 \(2\.png\): not a JPEG"):
        source.image(2)


def test_column_may_be_called_img(tmp_path: Path) -> None:
    assert values(open_source(write_parquet(tmp_path / "a.parquet", [png(3)], column="img"))) == [3]


def test_index_out_of_range(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(0)]))
    for i in (-1, 1):
        with pytest.raises(IndexError):
            source.image(i)


def test_pickled_source_has_no_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    source = open_source(write_parquet(tmp_path / "a.parquet", [noise] * 5))
    assert len(pickle.dumps(source)) < 5_000


# mistakes


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + bytes(100)])
def test_file_that_is_no_parquet_despite_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="not a readable Parquet file") as error:
        open_source(tmp_path / "a.parquet")
    assert "a.parquet" in one_line(error)


def test_parquet_without_an_image_column_lists_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["x"], "image": [5]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no image column.*caption: string, image: int64") as error:
        open_source(tmp_path / "a.parquet")
    one_line(error)


def test_parquet_without_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(UserError, match=r"a\.parquet.*no rows"):
        open_source(tmp_path / "a.parquet")


# real data


def test_real_parquet(shared: Path) -> None:
    source = open_source(shared / "data" / "cifar10" / "test.parquet")
    assert len(source) == 10_000
    assert source.classes is not None
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    assert source.image(9_999).shape == (32, 32, 3)
    labels = [source.label(i) for i in range(10_000)]
    assert [labels.count(k) for k in range(10)] == [1000] * 10
