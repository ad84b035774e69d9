"""Order by row groups: exact like any other, each group read once an epoch, and how well it mixes."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data import parquet, row_groups
from hardpatch.data.loader import train_batches
from hardpatch.data.order import TrainingOrder
from hardpatch.data.parquet_file import column_batches
from hardpatch.data.row_groups import RowGroups, choose_order
from hardpatch.data.sources import Subset, hold_out, open_source
from tests.data.small import TRAIN, assert_same, make_folder, png, take, write_parquet


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    window=st.integers(1, 5),
    start=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_windows_of_row_groups_come_one_after_the_other(sizes: list[int], window: int, start: int, seed: int) -> None:
    groups = RowGroups(np.cumsum(sizes), window)
    n = sum(sizes)
    order = groups.permutation(torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(n))
    group_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    last = {group: at for at, group in enumerate(group_of.tolist())}
    open_groups: set[int] = set()
    together: set[int] = set()
    for at, group in enumerate(group_of.tolist()):  # between places where no group is half read there are few groups
        open_groups.add(group)
        together.add(group)
        open_groups -= {group} if last[group] == at else set()
        if not open_groups:
            assert len(together) <= window
            together = set()
    stream = np.concatenate(list(itertools.islice(TrainingOrder(n, 4, seed, 0, 0, 1, groups), start + 5)))
    later = np.concatenate(list(itertools.islice(TrainingOrder(n, 4, seed, start, 0, 1, groups), 5)))
    assert np.array_equal(stream[4 * start :], later), "begins anywhere"
    parts = [next(iter(TrainingOrder(n, 4, seed, start, rank, 2, groups))) for rank in (0, 1)]
    assert np.array_equal(np.concatenate(parts), later[:4])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Row groups that are read, of files that are not held in memory."""
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(parquet, "CACHED_ROW_GROUPS", 2)
    counted: Counter[int] = Counter()

    def count(file: Any, column: str, group: int, path: str) -> Any:
        counted[group] += 1
        return column_batches(file, column, group, path)

    monkeypatch.setattr(parquet, "column_batches", count)
    return counted


def test_each_row_group_is_read_once_an_epoch(tmp_path: Path, reads: Counter[int]) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(k) for k in range(60)], row_group_size=5)
    source = open_source(path)
    groups, note = choose_order(source, "row_groups", 4)
    assert note == (
        "data.shuffle row_groups: by row groups of 5 images, 4 of 12 mixed at a time; each process that decodes reads "
        "every group once an epoch"
    )
    take(train_batches(source, TRAIN, batch_size=6, seed=0, groups=groups), 10)
    assert reads == dict.fromkeys(range(12), 1)
    reads.clear()
    take(train_batches(source, TRAIN, batch_size=6, seed=0), 10)
    assert sum(reads.values()) > 30, "at random, each image costs a group"


def test_batches_by_row_groups_do_not_depend_on_workers(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(k) for k in range(30)], row_group_size=5))
    groups, _ = choose_order(source, "row_groups", 2)
    expected = take(train_batches(source, TRAIN, batch_size=4, seed=3, groups=groups), 20)
    assert_same(
        expected[11:], take(train_batches(source, TRAIN, batch_size=4, seed=3, start=11, workers=1, groups=groups), 9)
    )


def test_what_auto_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(k) for k in range(60)], row_group_size=20)
    assert choose_order(open_source(path), "auto", 8)[0] is None, "in memory"
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    source = open_source([path, path])
    assert choose_order(source, "auto", 8)[0] is None, "small groups"
    monkeypatch.setattr(row_groups, "FEW_IMAGES", 10)
    groups, _ = choose_order(source, "auto", 8)
    assert groups is not None
    assert groups.ends.tolist() == [20, 40, 60, 80, 100, 120]
    assert choose_order(source, "samples", 8) == (None, "")
    most = source.row_groups.most_bytes  # type: ignore[attr-defined]
    monkeypatch.setattr(row_groups, "CACHED_BYTES", 6 * most)
    groups, note = choose_order(source, "auto", 8)
    assert groups is not None
    assert groups.window == 3
    assert f"(8 would take more than {3 * most:,} bytes)" in note


def test_row_groups_of_a_part_of_a_set(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(k) for k in range(20)], row_group_size=5))
    part, held = hold_out(source, 6)
    groups, _ = choose_order(part, "row_groups", 1)
    assert groups is not None
    assert held is not None
    kept = [part.name(i) for i in range(14)]
    ends = [sum(int(name.split(" row ")[1].split()[0]) < end for name in kept) for end in (5, 10, 15, 20)]
    assert groups.ends.tolist() == sorted({*ends} - {0})
    with pytest.raises(ValueError, match=r"data\.shuffle: expected samples or auto"):
        choose_order(Subset(source, [3, 1, 2]), "row_groups", 1)
    with pytest.raises(ValueError, match=r"data\.shuffle: expected samples or auto"):
        choose_order(make_folder(tmp_path / "x", 3), "row_groups", 1)


def test_how_well_it_mixes() -> None:
    """Of a file sorted by 100 classes, batches by 8 of 64 groups hold fewer classes than batches of all images."""
    labels = np.repeat(np.arange(100), 64)
    ends = np.arange(100, 6401, 100)

    def classes(groups: RowGroups | None) -> float:
        batches = itertools.islice(TrainingOrder(6400, 64, 0, 0, 0, 1, groups), 100)
        return float(np.mean([len(np.unique(labels[batch[:, 1]])) for batch in batches]))

    uniform, eight, one = classes(None), classes(RowGroups(ends, 8)), classes(RowGroups(ends, 1))
    assert uniform == pytest.approx(100 * (1 - 0.99**64), rel=0.03)
    assert one < 4
    assert 12 < eight < 22
