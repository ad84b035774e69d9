"""Columns of Parquet files: labels of any type by value, images by bytes or path, and what cannot be told apart."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardpatch.data import parquet
from hardpatch.data.columns import Columns
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import Source, open_images, open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from tests.data.small import one_line, png, values, write_parquet, write_png

WORDS = ["dog", "cat", "dog"]


def write(path: Path, **columns: object) -> Path:
    if "image" not in columns and not any(name.startswith("pic") for name in columns):
        columns = {"image": [png(k) for k in range(3)], **columns}
    pq.write_table(pa.table(columns), path)
    return path


def classes_of(source: Source) -> list[str | None]:
    numbers = [source.label(i) for i in range(len(source))]
    return [None if k is None or source.classes is None else source.classes[k] for k in numbers]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(WORDS), WORDS),
        (pa.array(WORDS, pa.large_string()), WORDS),
        (pa.array(WORDS).dictionary_encode(), WORDS),
        (pa.array([7, 5, 7]).dictionary_encode(), ["7", "5", "7"]),
        (pa.array([3.0, None, 10.0]), ["3", None, "10"]),
        (pa.array([3.0, np.nan, 10.0], from_pandas=False), ["3", None, "10"]),
        (pa.array([2, 1, 0], pa.float16()), ["2", "1", "0"]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([200, 0, 200], pa.uint8()), ["200", "0", "200"]),
        (pa.array([2**64 - 1, 0, 0], pa.uint64()), [str(2**64 - 1), "0", "0"]),
        (pa.array([10**9, 0, 1]), ["1000000000", "0", "1"]),
        (pa.array(["10", "9", ""]), ["10", "9", None]),
        (pa.array([-1, 4, None]), [None, "4", None]),
    ],
)
def test_labels_of_any_type_by_value(tmp_path: Path, column: pa.Array, expected: list[str | None]) -> None:
    source = open_source(write(tmp_path / "a.parquet", label=column))
    assert classes_of(source) == expected
    present = {name for name in expected if name is not None}
    assert source.classes == tuple(sorted(present, key=lambda name: (int(name) if name.isdigit() else 0, name)))


@pytest.mark.parametrize("name", ["labels", "class", "fine_label", "Category", "target", "class_name"])
def test_labels_in_columns_of_other_names(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path / "a.parquet", width=[1, 2, 3], **{name: WORDS}))
    assert classes_of(source) == WORDS
    assert summarize(source) == f"3 images, 2 classes, labels in column '{name}'"


def test_label_wins_over_columns_that_only_end_so(tmp_path: Path) -> None:
    assert classes_of(open_source(write(tmp_path / "a.parquet", sub_label=[1, 2, 3], label=WORDS))) == WORDS


@pytest.mark.parametrize("other", ["coarse_label", "class"])
def test_two_columns_that_could_be_the_label(tmp_path: Path, other: str) -> None:
    first = "fine_label" if other == "coarse_label" else "label"
    path = write(tmp_path / "a.parquet", **{first: WORDS, other: ["animal"] * 3})
    source = open_source(path)
    assert source.classes is None
    assert f"2 columns could hold the labels: {first}, {other}; choose one with --label_column" in summarize(source)
    assert classes_of(open_source(path, Columns(label=other))) == ["animal"] * 3


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([[1], [2], [1, 2]]), "column 'label' is of type list<"),
        (pa.array([0.5, 1.0, 2.0]), "column 'label' is of type double and holds 0.5, which is no class"),
        (pa.array([np.inf, 1.0, 2.0]), "holds inf, which is no class"),
    ],
)
def test_what_is_no_label_is_named_with_its_type(tmp_path: Path, column: pa.Array, reason: str) -> None:
    path = write(tmp_path / "a.parquet", label=column)
    source = open_source(path)
    assert source.classes is None
    assert reason in source.unlabeled
    assert "expected whole numbers, text, booleans, or categories of these; the columns are image: " in source.unlabeled
    with pytest.raises(UserError, match=r"--label_column: .*a\.parquet: column 'label' ") as error:
        open_source(path, Columns(label="label"))
    one_line(error)


def test_shards_are_brought_together_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [png(0), png(1)], [0, 1], ["cat", "dog"])
    write_parquet(tmp_path / "b.parquet", [png(2), png(3)], [0, 1], ["dog", "ant"])
    source = open_source(tmp_path)
    assert source.classes == ("ant", "cat", "dog")
    assert classes_of(source) == ["cat", "dog", "dog", "ant"]
    write_parquet(tmp_path / "c.parquet", [png(4)], [1])
    source = open_source(tmp_path)
    assert source.classes is None
    assert source.unlabeled.endswith(f"c.parquet are numbers and those of {tmp_path}/b.parquet names")


def test_a_shard_without_the_column_has_no_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [png(0)], [3])
    write_parquet(tmp_path / "b.parquet", [png(1)])
    assert classes_of(open_source(tmp_path)) == ["3", None]


def test_declared_classes_keep_their_order_and_all_their_names(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(0)], [1], ["zebra", "crane", "crane"]))
    assert source.classes == ("zebra", "crane (1)", "crane (2)")
    assert source.label(0) == 1


def test_images_in_a_column_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", picture=[png(5)], note=["x"])
    assert summarize(open_source(path)) == "1 images, images in column 'picture'"
    write(path, picture_a=[png(1)], picture_b=[png(2)])
    with pytest.raises(
        UserError, match="2 columns could hold the images: picture_a, picture_b; choose one with --image"
    ):
        open_source(path)
    assert values(open_source(path, Columns(image="picture_b"))) == [2]
    write(path, image=[png(1)], img=[png(2)])
    with pytest.raises(UserError, match="2 columns could hold the images: image, img; choose"):
        open_source(path)
    for wanted, message in (("up", "has no column 'up'; the columns are image: binary"), ("n", "got int64")):
        write(path, image=[png(1)], n=[1])
        with pytest.raises(UserError, match=f"--image_column: .*{message}") as error:
            open_source(path, Columns(image=wanted))
        one_line(error)


def test_rows_with_paths_only(tmp_path: Path, residency: str) -> None:
    for k in range(3):
        write_png(tmp_path / "set" / "images" / f"{k}.png", k)
    paths = ["images/0.png", str(tmp_path / "set" / "images" / "1.png"), "images/gone.png", None]
    path = write(tmp_path / "set" / "a.parquet", image=paths)
    structs = pa.array([{"bytes": None, "path": name} for name in paths[:3]] + [{"bytes": png(9), "path": "2.png"}])
    for source in (open_source(path), open_source(write(tmp_path / "set" / "b.parquet", image=structs))):
        assert [int(source.image(i)[0, 0, 0]) for i in range(2)] == [0, 1]
        with pytest.raises(UndecodableImage, match=r"row 2 \(images/gone\.png\): .*([Nn]o such file|no file)"):
            source.image(2)
        read = [os.path.relpath(file, tmp_path / "set") for file in source.files()]
        assert read[1:] == ["images/0.png", "images/1.png", "images/gone.png"], "a change of these changes the features"
    with pytest.raises(UndecodableImage, match="row 3: no bytes"):
        open_source(path).image(3)


@pytest.mark.parametrize("resident", [True, False])
def test_a_rotten_page(tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(k) for k in range(8)], [0] * 8)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(56) + whole[60:])
    if not resident:
        monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    source = open_source(path)
    for _ in range(2):
        with pytest.raises(UndecodableImage, match=r"a\.parquet row 1: cannot read row group 0 \(") as error:
            source.image(1)
        assert "\n" not in str(error.value)
    assert source.image(4)[0, 0, 0] == 4


def test_splits_and_folders_of_a_hub(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("x")
    for name, value in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("test-00000-of-00001", 2)):
        write_parquet(data / f"{name}.parquet", [png(value)], [0])
    train, val = open_source(tmp_path / "hub"), open_source(tmp_path / "hub", role="val")
    assert (values(train), values(val)) == ([0, 1], [2])
    test = data / "test-00000-of-00001.parquet"
    assert f"split train, left out 1 Parquet files of the split test (the first: {test})" in summarize(train)
    assert "left out 2 Parquet files of the split train" in summarize(val)
    write_parquet(data / "validation-0.parquet", [png(3)], [0])
    assert values(open_source(tmp_path / "hub", role="val")) == [3]
    everything = open_source(f"{tmp_path}/hub/**/*.parquet")
    assert values(everything) == [2, 0, 1, 3]
    assert "Parquet files of several splits: 1 of split test, 2 of split train, 1 of split validation" in summarize(
        everything
    )
    for path in data.glob("train*"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"hub: expected Parquet files of one split, got 1 of split test, 1 of split val"
    ):
        open_source(tmp_path / "hub")
    (data / "validation-0.parquet").unlink()
    assert values(open_source(tmp_path / "hub")) == [2], "a single split is taken whatever it is called"


def test_files_of_several_folders_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "0.parquet", [png(0)])
    assert "from 2 folders: a, b" in summarize(open_source(tmp_path))


def test_columns_of_a_source_without_columns_are_said(tmp_path: Path) -> None:
    write_png(tmp_path / "cat" / "a.png")
    source = open_images([tmp_path], Columns("x", "y"))
    assert "--image_column, --label_column not used, as there are no columns" in summarize(source)
    assert "--image_column not used" in summarize(open_source("demo:test", Columns("x")))
    assert summarize(open_source("demo:test")) == "1000 images, 10 classes"
