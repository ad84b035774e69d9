"""The paper's tables through the command line, at the smallest scale: run, stopped, gone on with, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hardpatch.cli import main
from hardpatch.study import rows
from tests.end_to_end.conftest import write_images

MICRO = ("--scale", "micro", "--train.device", "cpu")


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images to be judged on, of the same two classes as ``images``."""
    return write_images(tmp_path_factory.mktemp("val") / "labeled", each=6)


def study(table: str, out: Path, *more: object) -> int:
    return main(["study", table, *MICRO, "--out", str(out), *map(str, more)])


def read_table(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "table.json").read_text())
    return content


def measured(out: Path) -> dict[str, Any]:
    """What was measured of each run, without what differs from one call to the next."""
    return {
        str(path.relative_to(out)): json.loads(path.read_text())["details"]
        for path in sorted(out.glob("*/seed_*/result.json"))
    }


def test_table2_on_the_embedded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert study("table2", out) == 0
    table = rows.read("table2")
    content = read_table(out)
    assert [row["name"] for row in content["rows"]] == [row.name for row in table.rows]
    for row in content["rows"]:
        assert row["missing"] is None
        assert set(row["ours"]) == {"knn", "linear", "finetune"}
        assert 0.1 < row["ours"]["linear"]["mean"] < 1.0  # ten classes
    text = (out / "table.md").read_text()
    assert "**hard, easy to hard (alpha 0 to 0.5)**" in text
    assert "| 82.95 |" in text
    assert imread(out / "table.png").shape[1] > 1000
    assert "hardpatch study table2 --scale micro" in (out / "README.md").read_text()

    # A second call finds all of it done, and one run that was not measured is measured without being trained again.
    default = out / next(row.key for row in table.rows if row.default) / "seed_0"
    before, weights = measured(out), default / "checkpoints" / "step_00000020" / "model.safetensors"
    (default / "result.json").unlink()
    trained = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert study("table2", out) == 0
    assert "7 runs, 1 of them to do" in capsys.readouterr().out
    assert measured(out) == before
    assert weights.stat().st_mtime_ns == trained
    assert main(["info", str(default)]) == 0


def test_every_host_of_table_b(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert study("tableB", out, "--data", images, "--val", val, "--steps", "4") == 0
    assert (out / "tokenizer.safetensors").is_file()
    lines = read_table(out)["rows"]
    assert len(lines) == 8
    assert all(set(line["ours"]) == {"knn", "linear", "finetune"} for line in lines)
    assert "9 runs, 9 of them to do" in capsys.readouterr().out
    # The tokenizer of one study serves another.
    other = tmp_path / "other"
    tokenizer = ("--tokenizer", out / "tokenizer.safetensors")
    assert study("tableB", other, "--data", images, "--val", val, "--steps", "4", *tokenizer) == 0
    assert measured(other) == measured(out)
    assert not (other / "tokenizer.safetensors").exists()


def test_rows_that_cannot_be_run_are_in_the_table(
    images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("table1", tmp_path, "--data", images, "--val", val, "--steps", "2") == 0
    assert "DINO features: with learned masks: not run, it needs --dino_weights FILE" in capsys.readouterr().out
    lines = read_table(tmp_path)["rows"]
    missing = {line["name"]: line["missing"] for line in lines if line["missing"]}
    assert len(missing) == 6
    assert missing["CLIP features: without predictor"] == "not run: it needs --clip_weights FILE"
    assert (
        "| CLIP features: without predictor (not run: it needs --clip_weights FILE) |"
        in (tmp_path / "table.md").read_text()
    )


def test_labels_and_half_of_the_patches(images: Path, val: Path, tmp_path: Path) -> None:
    assert study("tableD", tmp_path, "--data", images, "--val", val, "--steps", "4", "--seeds", "2") == 0
    for line in read_table(tmp_path)["rows"]:
        assert set(line["ours"]) == {"supervised", "whole"}
        assert line["ours"]["whole"]["seeds"] == 2
    assert len(list(tmp_path.glob("predictor/seed_*/checkpoints"))) == 2


def test_a_row_that_diverges_is_reported(
    images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("table3", tmp_path, "--data", images, "--val", val, "--optim.lr", "1e30", "--optim.clip", "null") == 1
    assert "none (MAE), seed 0: failed: " in capsys.readouterr().err
    lines = read_table(tmp_path)["rows"]
    assert all(line["missing"].startswith("not run: ") for line in lines)
    assert "NaN" in lines[0]["missing"]


def test_side_by_side_is_one_after_the_other(images: Path, val: Path, tmp_path: Path) -> None:
    given = ("--data", images, "--val", val, "--steps", "4")
    assert study("table3", tmp_path / "one", *given) == 0
    assert study("table3", tmp_path / "two", *given, "--jobs", "2") == 0
    assert measured(tmp_path / "one") == measured(tmp_path / "two")
    assert len(measured(tmp_path / "one")) == 4


COMMAND = [sys.executable, "-m", "hardpatch", "study", "table3", *MICRO, "--train.checkpoint_steps", "5"]


def start(images: Path, val: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--train.log_every", "1", "--steps", "30", "--data", str(images), "--val", str(val)]
    return subprocess.Popen(
        [*command, "--out", str(out), *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: "subprocess.Popen[str]", done: Callable[[], bool]) -> None:
    for _ in range(2400):
        if done():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the study does not get on")


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture(scope="module")
def uninterrupted(images: Path, val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "study"
    process = start(images, val, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_stopped_in_its_second_row_ends_the_same(
    kind: signal.Signals, images: Path, val: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    second = out / rows.read("table3").rows[1].key / "seed_0"
    process = start(images, val, out)
    wait_for(process, lambda: lines_of(second / "metrics.jsonl") >= 8)
    process.send_signal(kind)
    told, errors = process.communicate(timeout=60)
    assert not (second / "result.json").exists()
    assert len(measured(out)) == 1
    if kind == signal.SIGKILL:
        assert process.returncode == -kind
    else:
        assert process.returncode == 128 + kind, errors
        assert "go on with: hardpatch study table3 --scale micro" in told
        assert [bool(line["ours"]) for line in read_table(out)["rows"]] == [True, False, False, False]
        assert read_table(out)["rows"][1]["missing"] == "not run: not yet"
    process = start(images, val, out)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "4 runs, 3 of them to do" in told
    assert measured(out) == measured(uninterrupted)


def test_runs_side_by_side_are_stopped_together(images: Path, val: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    folders = [out / row.key / "seed_0" for row in rows.read("table3").rows[:2]]
    process = start(images, val, out, "--jobs", "2", "--steps", "3000")
    wait_for(process, lambda: all(lines_of(folder / "metrics.jsonl") >= 3 for folder in folders))
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "go on with" in told
    for folder in folders:  # they saved the step that they were in
        steps = lines_of(folder / "metrics.jsonl")
        assert (folder / "checkpoints" / f"step_{steps:08d}").is_dir()
    assert "Traceback" not in errors


def test_plan_by_hand(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    given = ("--data", images, "--val", val, "--seeds", "2", "--epochs", "48", "--batch_size", "36")
    speed = ("--images_per_second", "2")
    assert main(["study", "plan", "table4", *MICRO, *map(str, given), *speed, "--out", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert not out.exists()
    # 30 images, 48 epochs, 36 a step: 40 steps, 1,440 images; twice; at 2 a second that is 0.4 hours.
    assert [line.split()[-4:] for line in told if line.startswith("HPM  ")] == [["2", "2,880", "2", "0.40"]]
    longer = next(line for line in told if line.startswith("HPM, 4 times"))
    assert longer.split()[-4:] == ["2", "11,520", "2", "1.60"]
    # lengths 1, 1, 8, 4, 8, 4
    assert told[-1].startswith("12 runs, 74,880 images, 10.40 hours")
    assert "fine-tuning (36 images)" in told[-1]  # 12 runs, a tenth of an epoch of 30 images


def test_plan_measures(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(images), "--val", str(val), "--out", str(tmp_path / "study")]
    assert main(["study", "plan", "tableD", *MICRO, *given]) == 0
    told = capsys.readouterr().out
    assert "?" not in told
    assert "5 runs, 3,200 images" in told
    assert "fine-tuning (0 images)" in told  # these rows are under labels anyway
    assert not (tmp_path / "study").exists()


def test_mistakes_are_one_line(images: Path, val: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "study"
    given = ("--data", images, "--val", val, "--steps", "2")
    assert study("tableS4", out, *given) == 0
    line = fails("study", "tableS4", *MICRO, *given, "--out", out, "--optim.lr", "0.5")
    assert "was made with other settings: optim.lr was None, now 0.5; take those, or another --out" in line
    line = fails("study", "table3", *MICRO, *given, "--out", out)
    assert "has table tableS4, now table3; take another --out" in line
    line = fails("study", "tableS4", *MICRO, "--data", images, "--val", images, "--steps", "2", "--out", out)
    assert f"has val {val}, now {images}" in line
    assert "did you mean 'table3'" in fails("study", "tabel3", *MICRO, "--out", out)
    assert "--out: expected a folder" in fails("study", "table3", *MICRO)
    assert "--data and --val: scale tiny needs images" in fails("study", "table3", "--out", tmp_path / "new")
    assert "--val: " in fails("study", "table3", *MICRO, "--val", tmp_path / "none", "--out", tmp_path / "new")
    assert "label" in fails("study", "table3", *MICRO, "--val", val / "class_0", "--out", tmp_path / "new")
    assert "--optim.lrr" in fails("study", "table3", *MICRO, "--optim.lrr", "1", "--out", tmp_path / "new")
    assert "--images_per_second" in fails("study", "table3", *MICRO, "--images_per_second", "5", "--out", out)
    assert not (tmp_path / "new").exists()
