"""Parquet files that are damaged, that unpack to gigabytes, or whose labels are huge numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardpatch.data import parquet, parquet_file
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from tests.data.small import one_line, png, values, write_parquet


@pytest.mark.parametrize("label", [10**9, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_label_takes_no_memory_by_its_value(tmp_path: Path, label: int) -> None:
    labels = pa.array([label, 0, 7, 0], pa.uint64())
    pq.write_table(pa.table({"image": [png(k) for k in range(4)], "label": labels}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert source.classes == ("0", "7", str(label))
    assert [source.label(i) for i in range(4)] == [2, 0, 1, 0]


def test_a_number_of_thousands_of_digits_is_a_name(tmp_path: Path) -> None:
    digits = "7" * 5000
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": [digits, "3"]}), tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").classes == ("3", digits)


def test_class_names_are_lines_of_text(tmp_path: Path) -> None:
    labels = pa.array([b"\x1b[31mred", b"two\nlines", b"\xe9"])
    pq.write_table(
        pa.table({"image": [png(k) for k in range(3)], "label": labels.view(pa.string())}), tmp_path / "a.parquet"
    )
    assert open_source(tmp_path / "a.parquet").classes == ("\\x1b[31mred", "\\xe9", "two\\nlines")


def test_a_rotten_row_group_is_that_of_its_images_alone(tmp_path: Path, residency: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(k) for k in range(12)], [0] * 12)
    whole = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(1).column(0)  # of three row groups
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    path.write_bytes(whole[:at] + bytes(60) + whole[at + 60 :])
    source = open_source(path)
    for i in range(12):
        if 4 <= i < 8:
            with pytest.raises(UndecodableImage, match=rf"a\.parquet row {i}: cannot read row group 1 \(") as error:
                source.image(i)
            assert "\n" not in str(error.value)
        else:
            assert source.image(i)[0, 0, 0] == i


def test_a_file_that_is_cut_off_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    path = write_parquet(tmp_path / "a.parquet", [png(k) for k in range(8)])
    source = open_source(path)
    assert source.image(0)[0, 0, 0] == 0
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 5: cannot read row group 1 \("):
        source.image(5)
    path.unlink()
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 6: .*row group 1"):
        source.image(6)


def write_bomb(path: Path, rows: int = 3000, size: int = 1 << 16) -> Path:
    """Write one value of which all rows are copies: a few kilobytes for 200 megabytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"x" * size]))
    pq.write_table(pa.table({"image": column}), path, compression="gzip", store_schema=False)
    return path


def test_a_row_group_that_unpacks_to_more_than_images_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "GROUP_BYTES", 32 << 20)
    path = write_bomb(tmp_path / "a.parquet")
    assert path.stat().st_size < 10_000
    source, before = open_source(path), pa.total_allocated_bytes()
    with pytest.raises(
        UndecodableImage, match="row group 0 takes more than 33,554,432 bytes unpacked; write the file wi"
    ):
        source.image(2)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_files_that_unpack_to_more_than_fits_are_read_by_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array([png(3)]))
    pq.write_table(pa.table({"image": column}), path, row_group_size=10, store_schema=False)
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", path.stat().st_size + 1)
    source = open_source(path)
    assert isinstance(source, parquet.ParquetSource)
    assert len(source._cache) == parquet.CACHED_ROW_GROUPS
    assert values(source) == [3] * 400


def test_labels_that_unpack_to_more_than_names_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 4000
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 100_000]))
    table = pa.table({"image": [png(0)] * rows, "label": labels})
    pq.write_table(table, tmp_path / "a.parquet", compression="gzip", store_schema=False)
    pool = pa.default_memory_pool()
    assert open_source(tmp_path / "a.parquet").classes == ("x" * 100_000,)
    assert pool.bytes_allocated() < 50 << 20
    monkeypatch.setattr(parquet_file, "GROUP_BYTES", 1 << 20)
    with pytest.raises(
        UserError, match=r"a\.parquet: column 'label': the labels take more than 1,048,576 bytes"
    ) as error:
        open_source(tmp_path / "a.parquet")
    one_line(error)


def test_more_rows_than_a_file_has_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "FEW_ROWS", 1000)
    pq.write_table(pa.table({"image": pa.nulls(100_000, pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"a\.parquet: expected at most .* rows .* its footer says 100,000; split"
    ) as error:
        open_source(tmp_path / "a.parquet")
    one_line(error)


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    name = b"\xe9.png"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(png(5))
    column = pa.array([name]).view(pa.string())
    pq.write_table(pa.table({"path": column, "label": [1]}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert np.all(source.image(0) == 5)
    assert os.fsencode(source.name(0)).endswith(b"row 0 (\xe9.png)")


def test_fuzz_changed_bytes() -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.data.parquet_bytes", f"changed_{os.getpid()}"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "files" in run.stdout
    print(run.stdout)
