import io
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hardpatch.data import sources
from hardpatch.data.decode import UndecodableImage
from hardpatch.data.demo import DemoSource
from hardpatch.data.sources import Source, open_images, open_source
from hardpatch.errors import UserError


def picture(value: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.full((*size, 3), value, dtype=np.uint8)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))
    return path


def values(source: Source) -> list[int]:
    """What `write` was given, for each image."""
    return [int(source.image(i, 3)[0, 0, 0]) for i in range(len(source))]


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# folders


def test_flat_folder_is_unlabeled_and_sorted(tmp_path: Path) -> None:
    for k, name in enumerate(["b.png", "a.PNG", "c.Jpeg", "d.webp", "e.TIF", "f.tiff", "g.bmp", "h.jpg"]):
        write(tmp_path / name, k)
    source = open_source(tmp_path)
    assert names(source) == sorted(str(path) for path in tmp_path.iterdir())
    assert values(source) == [1, 0, 2, 3, 4, 5, 6, 7]
    assert source.classes is None
    assert source.label(0) is None
    assert source.skipped == ()


def test_one_folder_a_class(tmp_path: Path) -> None:
    write(tmp_path / "dog" / "1.png", 1)
    write(tmp_path / "cat" / "2.png", 2)
    write(tmp_path / "cat" / "deeper" / "3.png", 3)
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert values(source) == [2, 3, 1]
    assert [source.label(i) for i in range(3)] == [0, 0, 1]


def test_an_image_beside_the_folders_makes_the_tree_unlabeled(tmp_path: Path) -> None:
    write(tmp_path / "dog" / "1.png")
    write(tmp_path / "cover.png")
    source = open_source(tmp_path)
    assert len(source) == 2
    assert source.classes is None


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "labels.csv").write_text("x")
    write(tmp_path / "._a.png")
    write(tmp_path / ".cache" / "b.png")
    source = open_source(tmp_path)
    assert names(source) == [str(tmp_path / "a.png")]
    assert source.skipped == (str(tmp_path / "notes.txt"), str(tmp_path / "sub" / "labels.csv"))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "far.png", 9)
    root = tmp_path / "root"
    write(root / "a" / "near.png", 1)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again.png").symlink_to(root / "a" / "near.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "out").symlink_to(tmp_path)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(root)
    assert [os.path.relpath(name, root) for name in names(source)] == [
        "a/again.png",
        "a/near.png",
        "a/out/elsewhere/far.png",
        "b/far.png",
    ]
    assert values(source) == [1, 1, 9, 9]


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", 1)
    write(tmp_path / "b" / "2.png", 2)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert values(open_source(tmp_path)) == [1, 2, 2, 1]


def test_names_with_any_letters(tmp_path: Path) -> None:
    wanted = ["Überraschung ☃.png", "a\nb.png", "ü.png"]
    for name in wanted:
        write(tmp_path / name)
    assert sorted(names(open_source(tmp_path))) == sorted(str(tmp_path / name) for name in wanted)


def test_paths_are_held_compactly() -> None:
    paths = [f"n{k // 1000:08d}/n{k // 1000:08d}_{k:06d}.JPEG" for k in range(20_000)]
    source = sources.FileSource("/data", paths, classes=sorted({path.split("/")[0] for path in paths}))
    assert len(pickle.dumps(source)) < 60 * len(paths)
    assert names(source) == [os.path.join("/data", path) for path in paths]
    assert source.label(19_999) == 19


def test_a_single_image(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "one.png", 7))
    assert values(source) == [7]
    assert names(source) == [str(tmp_path / "one.png")]
    assert source.classes is None


def test_broken_and_vanished_files_are_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.png").write_bytes(png(0)[:45])
    gone = write(tmp_path / "b.png")
    source = open_source(tmp_path)
    gone.unlink()
    with pytest.raises(UndecodableImage, match=r"a\.png: image file is truncated"):
        source.image(0, 3)
    with pytest.raises(UndecodableImage, match=r"b\.png: No such file"):
        source.image(1, 3)


def test_channels(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.png", 8))
    assert source.image(0, 1).shape == (6, 5, 1)
    with pytest.raises(UserError, match=r"data\.channels"):
        source.image(0, 13)


# mistakes


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_source(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in one_line(error)
    assert "no such file or folder" in one_line(error)


def test_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError) as error:
        open_source(tmp_path)
    for extension in (*sources.EXTENSIONS, "*.parquet"):
        assert extension in one_line(error)


def test_file_that_is_no_image_by_extension(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt: expected an image"):
        open_source(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + bytes(100)])
def test_file_that_is_not_parquet_in_truth(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="not a readable Parquet file") as error:
        open_source(tmp_path / "a.parquet")
    assert "a.parquet" in one_line(error)


def test_parquet_without_an_image_column_lists_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["x"], "image": ["path/only.png"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no image column.*caption: string, image: string") as error:
        open_source(tmp_path / "a.parquet")
    one_line(error)


def test_parquet_without_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(UserError, match=r"a\.parquet.*no rows"):
        open_source(tmp_path / "a.parquet")


def test_unknown_half_of_the_demo() -> None:
    with pytest.raises(UserError, match=r"demo:valid.*demo:train or demo:test"):
        open_source("demo:valid")


def test_no_images_given() -> None:
    with pytest.raises(UserError, match="no images given"):
        open_images([])


# Parquet


def write_parquet(
    path: Path,
    data: Sequence[bytes | None],
    labels: Sequence[int | None] | None = None,
    class_names: Sequence[str] | None = None,
    row_group_size: int = 4,
    column: str = "image",
) -> Path:
    rows = [{"bytes": item, "path": f"{k}.png"} for k, item in enumerate(data)]
    columns: dict[str, Any] = {column: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if class_names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture(params=["resident", "by row group"])
def residency(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by row group":
        monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(sources, "ROW_GROUPS_HELD", 2)
    return str(request.param)


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
    assert [int(source.image(int(i), 1)[0, 0, 0]) for i in order] == order.tolist()


def test_folder_of_parquet_files_in_sorted_order(tmp_path: Path, residency: str) -> None:
    write_parquet(tmp_path / "train-00001.parquet", [png(k) for k in range(7, 12)], [1] * 5)
    write_parquet(tmp_path / "train-00000.parquet", [png(k) for k in range(7)], [0] * 7)
    (tmp_path / "README.md").write_text("x")
    source = open_source(tmp_path)
    assert values(source) == list(range(12))
    assert [source.label(i) for i in range(12)] == [0] * 7 + [1] * 5
    assert source.name(11) == f"{tmp_path / 'train-00001.parquet'} row 4 (4.png)"
    assert source.classes == ("0", "1")


def test_only_some_row_groups_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(sources, "ROW_GROUPS_HELD", 2)
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(k) for k in range(20)]))
    assert isinstance(source, sources.ParquetSource)
    assert len(source._held) == 0
    values(source)
    assert list(source._held) == [3, 4]


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
    assert [source.label(i) for i in range(3)] == [None, 2, 0]
    assert source.classes == ("0", "1", "2"), "two names cannot stand for three labels"
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 1 \(1\.png\): no bytes"):
        source.image(1, 3)
    with pytest.raises(UndecodableImage, match=r"a\.parquet row 2 \(2\.png\): not a JPEG"):
        source.image(2, 3)


def test_the_other_usual_name_of_the_column(tmp_path: Path) -> None:
    assert values(open_source(write_parquet(tmp_path / "a.parquet", [png(3)], column="img"))) == [3]


def test_text_labels_are_left_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)], "label": ["cat"]}), tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").classes is None


def test_index_out_of_range(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", [png(0)]))
    for i in (-1, 1):
        with pytest.raises(IndexError):
            source.image(i, 3)


# several at once, and across processes


def test_several_paths_are_one_source(tmp_path: Path) -> None:
    write(tmp_path / "tree" / "cat" / "a.png", 1)
    (tmp_path / "tree" / "notes.txt").write_text("x")
    table = write_parquet(tmp_path / "t.parquet", [png(2), png(3)], [0, 1])
    single = write(tmp_path / "z.png", 4)
    source = open_images([single, table, tmp_path / "tree"])
    assert values(source) == [4, 2, 3, 1]
    assert names(source)[0] == str(single)
    assert source.classes is None
    assert [source.label(i) for i in range(4)] == [None] * 4
    assert source.skipped == (str(tmp_path / "tree" / "notes.txt"),)
    with pytest.raises(IndexError):
        source.name(4)


def test_some_images_of_a_source(tmp_path: Path) -> None:
    for k in range(4):
        write(tmp_path / f"class{k}" / f"{k}.png", k)
    (tmp_path / "notes.txt").write_text("x")
    whole = open_source(tmp_path)
    some = sources.Subset(whole, [3, 1])
    assert values(some) == [3, 1]
    assert names(some) == [whole.name(3), whole.name(1)]
    assert [some.label(i) for i in range(2)] == [3, 1]
    assert (some.classes, some.skipped) == (whole.classes, whole.skipped)


def test_one_path_keeps_its_labels(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "a.png")
    assert open_images([tmp_path]).classes == ("cat",)


def test_the_demo_set() -> None:
    source = open_source("demo:test")
    assert isinstance(source, DemoSource)
    assert source.split == "test"
    default = open_source(None)
    assert isinstance(default, DemoSource)
    assert default.split == "train"


def test_sources_survive_pickling(tmp_path: Path, residency: str) -> None:
    write(tmp_path / "tree" / "cat" / "a.png", 1)
    table = write_parquet(tmp_path / "t.parquet", [png(2) * 1 for _ in range(9)], [0] * 9)
    for source in (open_source(tmp_path / "tree"), open_source(table), open_images([tmp_path / "tree", table])):
        values(source)
        copy = pickle.loads(pickle.dumps(source))
        assert values(copy) == values(source)
        assert names(copy) == names(source)
        assert copy.classes == source.classes


def test_a_pickled_parquet_source_carries_no_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    source = open_source(write_parquet(tmp_path / "a.parquet", [noise] * 5))
    assert len(pickle.dumps(source)) < 5_000


# real data


def test_real_parquet(shared: Path) -> None:
    source = open_source(shared / "data" / "cifar10" / "test.parquet")
    assert len(source) == 10_000
    assert source.classes is not None
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    assert source.image(9_999, 3).shape == (32, 32, 3)
    labels = [source.label(i) for i in range(10_000)]
    assert [labels.count(k) for k in range(10)] == [1000] * 10


def test_real_folder_with_gray_files_among_the_colored(shared: Path) -> None:
    source = open_source(shared / "data" / "caltech100_128" / "test")
    assert len(source) == 789
    assert source.classes is not None
    assert len(source.classes) == 100
    for i in range(len(source)):
        pixels = source.image(i, 3)
        assert max(pixels.shape) <= 128
        assert pixels.shape[2] == 3
