"""Several measurements of one run as one table."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardpatch.cli import main
from hardpatch.finetune.run import finetune
from hardpatch.study.suite import read_suite, table_values
from hardpatch.train.progress import Silent


def write(path: Path, *entries: object) -> Path:
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def test_a_suite_of_two_and_one_that_fails(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"train": str(images), "val": str(images), "workers": 0}
    suite = write(
        tmp_path / "suite.yaml",
        {"name": "bars", "verb": "knn", **sets, "k": [3, 5], "random_baseline": True},
        {"name": "bars", "verb": "linear", **sets, "epochs": 2},
        {"name": "gone", "verb": "knn", **sets, "val": str(tmp_path / "gone")},
    )
    out = tmp_path / "out"
    assert main(["evaluate", str(run), "--suite", str(suite), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "hardpatch knn: --val:" in printed.err
    table = (out / "table.md").read_text()
    knn = json.loads((out / "knn-bars.json").read_text())
    assert f"| bars | k-NN top-1 | {100 * knn['top1']:.2f} % |" in table
    assert [row["k"] for row in knn["rows"]] == [3, 5]
    assert 0 <= knn["random"]["top1"] <= 1
    assert "| bars | linear top-5 |" in table
    assert "| gone | knn | failed" in table
    # Measurements that are done are not repeated.
    before = (out / "knn-bars.json").stat().st_mtime_ns
    (tmp_path / "gone").symlink_to(images)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--suite", str(suite), "--out", str(out)]) == 0
    assert (out / "knn-bars.json").stat().st_mtime_ns == before
    assert "failed" not in (out / "table.md").read_text()
    assert len(json.loads((out / "table.json").read_text())["results"]) == 3


class Stopping(Silent):
    """Send SIGTERM to this process after two steps."""

    def __init__(self) -> None:
        self.steps = 0

    def advance(self) -> None:
        self.steps += 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_training_of_a_suite_is_resumed(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "preset": "tiny",
        "epochs": 2,
        "warmup_epochs": 1,
        "batch_size": 10,
        "workers": 0,
        "device": "cpu",
    }
    entry = {"name": "bars", "verb": "finetune", "train": str(images), "val": str(images), **settings}
    suite, out = write(tmp_path / "suite.yaml", entry), tmp_path / "out"
    stopped = finetune(str(run), str(images), str(images), out / "finetune-bars", progress=Stopping(), **settings)
    assert (stopped.step, stopped.total) == (2, 6)
    for beginning in ("step 2 of 6", "table: "):  # it resumes from step 2; the second call repeats nothing
        capsys.readouterr()
        assert main(["evaluate", str(run), "--suite", str(suite), "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert beginning in printed.err + printed.out
    assert "steps done" not in printed.out
    top1 = json.loads((out / "finetune-bars" / "result.json").read_text())["top1"]
    assert f"| bars | fine-tuning top-1 | {100 * top1:.2f} % |" in (out / "table.md").read_text()


def test_arguments_of_an_entry(tmp_path: Path) -> None:
    suite = write(
        tmp_path / "suite.yaml",
        {"name": "my set", "verb": "linear", "lr": [0.1, 1], "random_baseline": True, "no": False},
    )
    (measurement,) = read_suite(suite)
    assert measurement.arguments == ("--lr", "0.1", "1", "--random_baseline")
    assert measurement.key == "linear-my_set"


def test_values_are_read_from_the_json_of_a_verb() -> None:
    assert table_values("detect", {"box": {"AP": 0.25, "AP50": 0.5}, "mask": {}}) == {"AP box": 0.25}
    assert table_values("knn", {"top1": 1}) == {"k-NN top-1": 1.0}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"verb": "knn"}], "expected name and verb in entry 1"),
        ([{"name": "a", "verb": "knnn"}], "did you mean 'knn'"),
        ([{"name": "a", "verb": "knn"}, {"name": "a", "verb": "knn"}], "occurs twice"),
        ([{"name": "a", "verb": "finetune", "out": "x"}], "out of entry 1 is set by hardpatch evaluate"),
        ([], "expected a list of measurements"),
    ],
)
def test_a_wrong_suite_is_one_line(
    entries: list[object], message: str, run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    suite = write(tmp_path / "suite.yaml", *entries)
    assert message in fails("evaluate", run, "--suite", suite, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
