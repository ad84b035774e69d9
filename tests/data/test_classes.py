"""Labels of several files become one set of classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.classes import Labels, brought_together, from_numbers, from_values, no_labels, unique_names
from hardpatch.data.names import class_name
from hardpatch.data.splits import split_of


def named(labels: Labels) -> list[str | None]:
    return [None if code < 0 else labels.names[code] for code in labels.codes]


def test_numbers_by_value() -> None:
    values = np.array([7, -1, 10**18, 0, 7, 3])
    labels = from_numbers(values, np.array([True, True, True, True, True, False]))
    assert labels.names == ("0", "7", str(10**18))
    assert labels.codes.tolist() == [1, -1, 2, 0, 1, -1]


def test_largest_unsigned_number() -> None:
    labels = from_numbers(np.array([2**64 - 1, 1], dtype=np.uint64), np.array([True, True]))
    assert labels.names == ("1", str(2**64 - 1))


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-2, 30).map(str))))
def test_texts_keep_their_classes(values: list[str | None]) -> None:
    labels = from_values(values)
    assert len(set(labels.names)) == len(labels.names)
    expected = [class_name(value) if value else None for value in values]
    if labels.kind == "numbers":
        expected = [None if value is None or value.startswith("-") else value for value in expected]
        assert list(map(int, labels.names)) == sorted(map(int, labels.names))
    assert named(labels) == [value if value in labels.names else None for value in expected]
    assert set(labels.names) == {name for name in named(labels) if name is not None}


@given(st.lists(st.lists(st.sampled_from(["ant", "bee", "cat", "dog"]), max_size=5), min_size=1, max_size=4))
def test_files_are_brought_together_by_name(files: list[list[str]]) -> None:
    together = brought_together([from_values(values) for values in files], [str(k) for k in range(len(files))])
    assert isinstance(together, Labels)
    assert named(together) == [value for values in files for value in values]
    assert list(together.names) == sorted({value for values in files for value in values})


def test_equal_declared_names_keep_their_order_and_classes_without_images() -> None:
    one = Labels(np.array([1, 0], np.int32), ("zebra", "ant", "unseen"), "declared")
    other = Labels(np.array([0, -1], np.int32), ("zebra", "ant", "unseen"), "declared")
    together = brought_together([one, no_labels(1), other], ["a", "b", "c"])
    assert isinstance(together, Labels)
    assert together.names == ("zebra", "ant", "unseen")
    assert together.codes.tolist() == [1, 0, -1, 0, -1]


def test_numbers_and_names_do_not_mix() -> None:
    numbers = from_numbers(np.array([0, 1]), np.array([True, True]))
    reason = brought_together([from_values(["cat"]), numbers], ["a.parquet", "b.parquet"])
    assert reason == "the labels of b.parquet are numbers and those of a.parquet names"


def test_names_that_occur_twice_stay_two_classes() -> None:
    assert unique_names(["crane", "owl", "crane"]) == ("crane (0)", "owl", "crane (2)")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("cifar10_test.parquet", "test"),
        ("val2017.tar", "validation"),
        ("training/0.tar", "train"),
        ("test/train-0.tar", "train"),
        ("dev/part.parquet", "validation"),
        ("trainval.tar", None),
        ("train_test.parquet", None),
        ("contest.parquet", None),
        ("images-00000.parquet", None),
    ],
)
def test_splits_by_name(path: str, split: str | None) -> None:
    assert split_of(path) == split
