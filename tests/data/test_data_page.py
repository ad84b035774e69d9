"""docs/data.md: every layout of its table is opened as the table says."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardpatch.data.sources import Source, open_source
from tests.data.small import png, values, write_parquet, write_png
from tests.data.test_archives import write_tar, write_zip

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
ROW = re.compile(r"^\| (?!layout|---)([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))

TREE = {"rose/a.jpg": png(1), "lily/b.jpg": png(2)}


def tree(root: Path) -> None:
    for name, content in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def hub(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("x")
    for number, content in enumerate(TREE.values()):
        write_parquet(root / "data" / f"train-{number:05d}-of-00002.parquet", [content], [number], ["rose", "lily"])
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [png(9)], [0], ["rose", "lily"])


def flat(folder: Path) -> str:
    write_png(folder / "photos" / "a.jpg", 1)
    write_png(folder / "photos" / "b.jpg", 2)
    return "photos"


def class_folders(folder: Path) -> str:
    tree(folder / "flowers")
    return "flowers"


def one_image(folder: Path) -> str:
    write_png(folder / "a.jpg", 1)
    return "a.jpg"


def parquet_file(folder: Path) -> str:
    write_parquet(folder / "set.parquet", list(TREE.values()), [0, 1], ["rose", "lily"])
    return "set.parquet"


def hub_folder(folder: Path) -> str:
    hub(folder / "hub")
    return "hub"


def parquet_paths(folder: Path) -> str:
    tree(folder / "images")
    table = {"path": [f"images/{name}" for name in TREE], "label": ["rose", "lily"]}
    pq.write_table(pa.table(table), folder / "set.parquet")
    return "set.parquet"


def csv_list(folder: Path) -> str:
    tree(folder / "images")
    (folder / "list.csv").write_text("".join(f"images/{name},{name[:4]}\n" for name in TREE))
    return "list.csv"


def archive(folder: Path) -> str:
    write_zip(folder / "flowers.zip", TREE)
    return "flowers.zip"


def webdataset(folder: Path) -> str:
    labels = {f"000{k}.cls": name.encode() for k, name in enumerate(("rose", "lily"))}
    write_tar(folder / "shard.tar", {"0000.jpg": png(1), "0001.jpg": png(2), **labels})
    return "shard.tar"


def shards(folder: Path) -> str:
    (folder / "shards").mkdir()
    for number, (name, content) in enumerate(TREE.items()):
        shard = {f"{number}.jpg": content, f"{number}.cls": name[:4].encode()}
        write_tar(folder / "shards" / f"train-{number:03d}.tar", shard)
    return "shards"


def pattern(folder: Path) -> str:
    tree(folder / "photos")
    return "photos/*/*.jpg"


def numbered(folder: Path) -> str:
    shards(folder)
    return "shards/train-{000..001}.tar"


def several(folder: Path) -> list[str]:
    write_png(folder / "a" / "rose" / "a.jpg", 1)
    write_zip(folder / "b.zip", {"lily/b.jpg": png(2)})
    return ["a", "b.zip"]


LAYOUTS: dict[str, Callable[[Path], str | list[str]]] = {
    "images in a folder": flat,
    "a folder for each class": class_folders,
    "one image": one_image,
    "a Parquet file": parquet_file,
    "Parquet files as the Hugging Face Hub lays them out": hub_folder,
    "Parquet with paths only": parquet_paths,
    "a list: CSV or TSV": csv_list,
    "a zip or tar": archive,
    "WebDataset": webdataset,
    "a folder of archives": shards,
    "a pattern, in quotes": pattern,
    "numbered files, in quotes": numbered,
    "several paths": several,
    "the embedded set": lambda _: "demo:train",
}


def classes_of(source: Source) -> list[str]:
    numbers = [source.label(i) for i in range(len(source))]
    return [source.classes[k] for k in numbers if k is not None and source.classes is not None]


def test_the_table_has_these_layouts() -> None:
    assert [name for name, _, _ in ROWS] == list(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = LAYOUTS[layout](tmp_path)
    example = next(text for name, text, _ in ROWS if name == layout)
    for name in [paths] if isinstance(paths, str) else paths:
        assert os.path.basename(name) in example
    source = open_source(paths)
    if layout == "the embedded set":
        assert source.classes == tuple("0123456789")
        return
    of_value = dict(zip(values(source), classes_of(source), strict=False))
    labeled = layout not in ("images in a folder", "one image")
    assert of_value == ({1: "rose", 2: "lily"} if labeled else {})
    assert sorted(values(source)) == ([1] if layout == "one image" else [1, 2])
