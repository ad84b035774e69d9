"""Options that stand on a command line twice: those of images take all, others say that the last one counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hardpatch.cli import main
from tests.end_to_end.conftest import SMALL, write_images

Fails = Callable[..., str]
CPU = ("--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("more") / "images", each=5)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; returns what it wrote to stderr."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["knn", "linear"])
def test_sets_of_frozen_features(
    verb: str, run: Path, images: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--train", images, "--val", more, "--val", images, "--train", more)
    options = ("--k", 5) if verb == "knn" else ("--epochs", 1)
    said = printed(capsys, verb, *sets, *options, *CPU, "--no_cache", "--json", tmp_path / "x.json", run)
    for name in ("train", "val"):
        assert f"--{name}: 40 images, 2 classes, classes of 2 paths brought together by name" in said
    values = json.loads((tmp_path / "x.json").read_text())
    assert values["images"] == {"train": 40, "val": 40}
    assert values["data"] == {"train": f"{images} {more}", "val": f"{more} {images}"}


def test_sets_of_a_fine_tuning(
    run: Path, images: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--epochs", 1, "--batch_size", 10, "--warmup_epochs", 0, *CPU)
    sets = ("--train", images, "--train", more, "--val", images)
    assert "--train: 40 images" in printed(capsys, "finetune", run, *sets, "--out", out, *options)
    assert yaml.safe_load((out / "config.yaml").read_text())["train"] == [str(images), str(more)]
    assert "--train: 40 images" in printed(capsys, "finetune", "--resume", "--out", out)
    assert json.loads((out / "result.json").read_text())["data"]["train"] == f"{images} {more}"


def test_sets_of_a_suite(
    run: Path, images: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = [{"name": "x", "verb": "knn", "train": [str(images), str(more)], "val": str(images), "k": [5, 10]}]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    said = printed(capsys, "evaluate", run, "--suite", tmp_path / "suite.yaml", "--out", tmp_path / "out")
    assert "--train: 40 images" in said
    assert "times" not in said


def test_several_paths_after_one_option(run: Path, images: Path, fails: Fails) -> None:
    line = fails("knn", run, "--train", images, "other", "--val", images)
    assert line.endswith("other; the option stands before each of several paths, as in --train A --train B")


@pytest.mark.parametrize(
    "command",
    [
        ("segment", "run", "--out", "x", "--train"),
        ("detect", "run", "--out", "x", "--val"),
        ("study", "table2", "--out", "x", "--data"),
        ("study", "table2", "--out", "x", "--train_labeled"),
        ("study", "table5", "--out", "x", "--detect_train"),
    ],
)
def test_images_of_which_there_is_one_folder(command: tuple[str, ...], fails: Fails) -> None:
    assert f"argument {command[-1]}: expected one path, got 2: a, b" in fails(*command, "a", command[-1], "b")


def test_the_last_of_other_options_counts(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--train", images, "--val", images, "--no_cache", *CPU, "--json", tmp_path / "x.json")
    said = printed(capsys, "knn", run, *sets, "--k", 5, 10, "--k=3")
    assert said.splitlines()[0] == "hardpatch knn: --k is given 2 times, the last one counts"
    assert json.loads((tmp_path / "x.json").read_text())["best_k"] == 3
    assert "given" not in printed(capsys, "knn", run, *sets, "--k", 5, 10)


def test_settings_with_and_without_their_section(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    command = ("pretrain", *SMALL, "--data", images, "--out", tmp_path / "run", "--print_config")
    assert main([*map(str, command), "--lr", "0.5"]) == 0
    printed_config, said = capsys.readouterr()
    assert yaml.safe_load(printed_config)["optim"]["lr"] == 0.5
    assert said == "hardpatch pretrain: --optim.lr is given 2 times, the last one counts\n"
    assert "--data, --data.path: expected one of the two" in fails(*command, "--data.path", images)
