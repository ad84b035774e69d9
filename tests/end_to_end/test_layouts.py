"""Tables, lists, archives and patterns through the command line: every verb reads them and says what it left out."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hardpatch.cli import main
from hardpatch.data.sources import open_source
from tests.data.test_archives import write_tar
from tests.end_to_end.conftest import SMALL

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def layouts(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out the same labeled images as a Parquet set with splits, an archive, shards and a list."""
    folder = tmp_path_factory.mktemp("layouts")
    pictures = sorted(images.rglob("*.jpg"))
    names = [path.parent.name for path in pictures]
    (folder / "hub").mkdir()
    for split, step in (("train", 1), ("test", 3)):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in pictures[::step]]
        pq.write_table(pa.table({"picture": rows, "kind_label": names[::step]}), folder / "hub" / f"{split}-0.parquet")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in pictures:
            archive.write(path, f"set/{path.relative_to(images)}")
        archive.writestr("set/readme.txt", "x")
    shard = {f"{k:03d}.jpg": path.read_bytes() for k, path in enumerate(pictures)}
    write_tar(folder / "shard.tar", shard | {f"{k:03d}.cls": name.encode() for k, name in enumerate(names)})
    lines = [
        f"{os.path.relpath(path, folder)},{name},{k}"
        for k, (path, name) in enumerate(zip(pictures, names, strict=True))
    ]
    (folder / "list.csv").write_text("\n".join(["file,kind,number", *lines, "gone.jpg,class_0,30"]) + "\n")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; returns what it wrote to stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().err


def test_knn_brings_layouts_together_by_class_name(
    run: Path, layouts: Path, images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    accuracies = []
    columns = {"list.csv": ("--label_column", "kind")}
    for name in ("hub", "images.zip", "shard.tar", "list.csv"):
        result = tmp_path / f"{name}.json"
        options = [*columns.get(name, ()), "--no_cache", "--workers", 0, "--k", 5, "--json", result]
        said = printed(capsys, "knn", run, "--train", layouts / name, "--val", images, *options)
        values = json.loads(result.read_text())
        accuracies.append((values["top1"], values["images"]["train"], values["classes"]))
        if name == "images.zip":
            assert (
                "--train: 30 images, 2 classes, images below set/, left out 1 files that are not images (1 .txt" in said
            )
            assert values["left_out"]["train, not images"] == 1
        if name == "hub":
            assert "split train, images in column 'picture', labels in column 'kind_label', left out 1 Parquet" in said
            assert values["left_out"]["train, Parquet files of the split test"] == 1
        if name == "list.csv":
            assert "1 of the listed files do not exist (the first: gone.jpg)" in said
            assert "cannot decode" in said
            assert values["left_out"]["train, undecodable"] == 1
    assert len(set(accuracies)) == 1
    assert accuracies[0][1:] == (30, 2)


def test_linear_takes_the_other_split_for_val(run: Path, layouts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = layouts / "hub"
    options = ["--epochs", 2, "--no_cache", "--workers", 0, "--image_column", "picture"]
    said = printed(capsys, "linear", run, "--train", hub, "--val", hub, *options)
    assert "--train: 30 images, 2 classes, split train" in said
    assert "--val: 10 images, 2 classes, split test" in said


def test_pretrain_on_several_paths(layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(layouts / "images.zip"), str(layouts / "hub" / "*.parquet")]
    out = tmp_path / "run"
    command = ["pretrain", *SMALL, "--data", paths[0], "--data", paths[1], "--image_column", "picture", "--out", out]
    said = printed(capsys, *command, "--steps", 2)
    assert "--data: 70 images, 2 classes, images below set/, Parquet files of several splits" in said
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["data"]["path"], config["data"]["image_column"]) == (paths, "picture")
    assert json.loads((out / "result.json").read_text())["left_out"]["not images"] == 1
    assert "70 images" in printed(capsys, "pretrain", "--resume", "--out", out)
    printed(capsys, "pretrain", *SMALL, "--data", *paths, "--steps", 1, "--out", tmp_path / "one")
    assert yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())["data"]["path"] == paths


def test_knn_sets_of_a_pre_training_are_checked_before_it(
    images: Path, layouts: Path, tmp_path: Path, fails: Fails
) -> None:
    command = ["pretrain", *SMALL, "--data", images, "--steps", 1, "--out", tmp_path / "run"]
    line = fails(*command, "--knn.train", images, "--knn.val", layouts / "gone.zip")
    assert line.startswith(f"hardpatch pretrain: --knn.val: {layouts}/gone.zip: no such file or folder")
    assert not (tmp_path / "run").exists()


def test_finetune_keeps_its_columns(
    run: Path, layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "classifier"
    data = ["--train", layouts / "list.csv", "--val", layouts / "list.csv", "--label_column", "kind"]
    options = ["--epochs", 1, "--batch_size", 10, "--workers", 0, "--warmup_epochs", 0, "--device", "cpu"]
    assert "--train: 31 images, 2 classes" in printed(capsys, "finetune", run, *data, "--out", out, *options)
    assert json.loads((out / "result.json").read_text())["classes"] == 2
    assert "--train: 31 images, 2 classes" in printed(capsys, "finetune", "--resume", "--out", out)


def test_shrink_embed_and_score_say_what_they_leave_out(
    run: Path, layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, shard = layouts / "images.zip", layouts / "shard.tar"
    said = printed(capsys, "shrink", archive, shard, "--side", 20, "--out", tmp_path / "small", "--workers", 0)
    assert "IMAGES: 60 images, 2 classes" in said
    assert "left out 1 files that are not images (1 .txt" in said
    small = open_source(tmp_path / "small")
    assert small.classes == ("class_0", "class_1")
    assert [small.label(i) for i in range(60)] == ([0] * 15 + [1] * 15) * 2
    said = printed(capsys, "embed", run, archive, "--out", tmp_path / "vectors.parquet", "--workers", 0)
    assert "left out 1 files that are not images (1 .txt" in said
    paths = pq.read_table(tmp_path / "vectors.parquet")["path"].to_pylist()
    assert paths[0] == f"{archive}/set/class_0/0.jpg"
    said = printed(
        capsys,
        *("score", run, layouts / "hub", "--image_column", "picture", "--out", tmp_path / "score"),
        *("--draws", 2, "--pictures", 1, "--workers", 0),
    )
    assert "IMAGES: 30 images, 2 classes, split train" in said


@pytest.fixture(scope="module")
def two_labels(layouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table with two columns of images and two of labels."""
    table = pq.read_table(layouts / "hub" / "test-0.parquet")
    table = table.append_column("coarse_label", table["kind_label"]).append_column("thumbnail", table["picture"])
    path = tmp_path_factory.mktemp("columns") / "set.parquet"
    pq.write_table(table, path)
    return path


def test_a_suite_names_columns_for_entries_that_have_none(
    run: Path, two_labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"train": str(two_labels), "val": str(two_labels), "k": 3, "workers": 0, "no_cache": True}
    entries = [
        {"name": "a", "verb": "knn", **sets},
        {"name": "b", "verb": "knn", **sets, "label_column": "coarse_label"},
    ]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(entries))
    columns = ("--image_column", "thumbnail", "--label_column", "kind_label")
    said = printed(capsys, "evaluate", run, "--suite", tmp_path / "suite.yaml", "--out", tmp_path / "out", *columns)
    named = [line for line in said.splitlines() if line.startswith("--train: ")]
    assert len(named) == 2
    assert "images in column 'thumbnail', labels in column 'kind_label'" in named[0]
    assert "images in column 'thumbnail', labels in column 'coarse_label'" in named[1]


def test_a_study_names_columns(two_labels: Path, tmp_path: Path, fails: Fails) -> None:
    study = ["table4", "--scale=micro", "--train.device=cpu", "--steps=1", "--out", str(tmp_path / "out")]
    study += ["--data", str(two_labels), "--val", str(two_labels), "--measures", "knn"]
    assert "2 columns could hold the images" in fails("study", *study)
    study += ["--image_column", "picture", "--data.label_column", "coarse_label"]
    assert main(["study", "plan", *study, "--images_per_second", "100"]) == 0
    assert main(["study", *study]) == 0
    for row in json.loads((tmp_path / "out" / "table4" / "table.json").read_text())["rows"]:
        assert row["ours"]["knn"]["mean"] == pytest.approx(1), "each image is its own neighbor"


def test_tokenizer_and_bench_read_them_too(layouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer"
    command = ["tokenizer", "--data", layouts / "hub", layouts / "shard.tar", "--image_column", "picture", "--out", out]
    options = ["--steps", 1, "--batch_size", 4, "--workers", 0, "--image_size", 32, "--device", "cpu"]
    assert "--data: 60 images" in printed(capsys, *command, *options)
    command = ["bench", "data", "--data", layouts / "shard.tar", "--seconds", 0.01, "--workers", 0, "--image_size", 16]
    assert "--data: 30 images, 2 classes, labels from .cls files" in printed(capsys, *command, "--device", "cpu")


def test_what_cannot_be_told_apart_is_refused_in_one_line(
    run: Path, layouts: Path, tmp_path: Path, fails: Fails
) -> None:
    knn = ["knn", run, "--val", layouts / "hub", "--no_cache", "--train"]
    table = pq.read_table(layouts / "hub" / "test-0.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(table.append_column("coarse_label", table["kind_label"]), path)
    assert (
        f"{path}: 2 columns could hold the labels: kind_label, coarse_label; choose one with --label_column"
        in fails(*knn, path)
    )
    pq.write_table(table.append_column("thumbnail", table["picture"]), path)
    assert "--train: " in fails(*knn, path)
    assert "2 columns could hold the images: picture, thumbnail; choose one with --image_column" in fails(*knn, path)
    assert "--image_column: " in fails(*knn, path, "--image_column", "pictures")
    nulls = pa.array([None if k == 2 else name for k, name in enumerate(table["kind_label"].to_pylist())])
    pq.write_table(table.set_column(1, "label", nulls), path)
    assert f"got some without; 1 of 10, the first: {path} row 2 (" in fails(*knn, path)
    assert "no column is called label, the others are kind, number" in fails(*knn, layouts / "list.csv")
    assert not (tmp_path / "features").exists()
