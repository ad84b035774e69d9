"""Studies through the command line, at the smallest scale: runs, interruptions, resume, mistakes."""

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
    """Write images to evaluate on, of the same two classes as ``images``."""
    return write_images(tmp_path_factory.mktemp("val") / "labeled", each=6)


def study(table: str, out: Path, *options: object) -> int:
    return main(["study", table, *MICRO, "--out", str(out), *map(str, options)])


def read_table(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "table.json").read_text())
    return content


def measurements(out: Path) -> dict[str, Any]:
    """Measurements of each run, without the facts that differ between calls."""
    return {
        str(path.relative_to(out)): json.loads(path.read_text())["details"]
        for path in sorted(out.glob("*/seed_*/result.json"))
    }


def test_table2_on_the_embedded_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert study("table2", out, "--json", str(tmp_path / "result.json")) == 0
    table = rows.read("table2")
    content = read_table(out)
    assert json.loads((tmp_path / "result.json").read_text()) == content
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

    # A second call skips the runs that are done. A trained run without a result is measured and not trained again.
    default = out / next(row.key for row in table.rows if row.default) / "seed_0"
    before, weights = measurements(out), default / "checkpoints" / "step_00000020" / "model.safetensors"
    (default / "result.json").unlink()
    trained = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert study("table2", out) == 0
    assert "7 runs, 1 of them to do" in capsys.readouterr().out
    assert measurements(out) == before
    assert weights.stat().st_mtime_ns == trained
    assert main(["info", str(default)]) == 0


def test_every_host_of_table_b(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert study("tableB", out, "--data", images, "--val", val, "--steps", "4") == 0
    assert (out / "trained_tokenizer" / "tokenizer.safetensors").is_file()
    lines = read_table(out)["rows"]
    assert len(lines) == 8
    assert all(set(line["ours"]) == {"knn", "linear", "finetune"} for line in lines)
    assert "9 runs, 9 of them to do" in capsys.readouterr().out
    # Another study can use the tokenizer of this one.
    other = tmp_path / "other"
    tokenizer = ("--tokenizer", out / "trained_tokenizer")
    assert study("tableB", other, "--data", images, "--val", val, "--steps", "4", *tokenizer) == 0
    assert measurements(other) == measurements(out)
    assert not (other / "trained_tokenizer").exists()


def test_rows_that_cannot_be_run_are_in_the_table_with_a_reason(
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


def test_supervised_rows_of_table_d(images: Path, val: Path, tmp_path: Path) -> None:
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


def test_runs_in_parallel_give_the_same_results(images: Path, val: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--val", val, "--steps", "4")
    assert study("table3", tmp_path / "one", *options) == 0
    assert study("table3", tmp_path / "two", *options, "--jobs", "2") == 0
    assert measurements(tmp_path / "one") == measurements(tmp_path / "two")
    assert len(measurements(tmp_path / "one")) == 4


COMMAND = [sys.executable, "-m", "hardpatch", "study", "table3", *MICRO, "--train.checkpoint_steps", "5"]


def start(images: Path, val: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--train.log_every", "1", "--steps", "30", "--data", str(images), "--val", str(val)]
    return subprocess.Popen(
        [*command, "--out", str(out), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: "subprocess.Popen[str]", done: Callable[[], bool]) -> None:
    for _ in range(2400):
        if done():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the study makes no progress")


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture(scope="module")
def uninterrupted(images: Path, val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "study"
    process = start(images, val, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_stopped_in_its_second_row_resumes_to_the_same_results(
    kind: signal.Signals, images: Path, val: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    second = out / rows.read("table3").rows[1].key / "seed_0"
    process = start(images, val, out)
    wait_for(process, lambda: count_lines(second / "metrics.jsonl") >= 8)
    process.send_signal(kind)
    output, errors = process.communicate(timeout=60)
    assert not (second / "result.json").exists()
    assert len(measurements(out)) == 1
    if kind == signal.SIGKILL:
        assert process.returncode == -kind
    else:
        assert process.returncode == 128 + kind, errors
        assert "To resume, run: hardpatch study table3 --scale micro" in output
        assert [bool(line["ours"]) for line in read_table(out)["rows"]] == [True, False, False, False]
        assert read_table(out)["rows"][1]["missing"] == "not run: pending"
    process = start(images, val, out)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "4 runs, 3 of them to do" in output
    assert measurements(out) == measurements(uninterrupted)


def test_a_signal_stops_all_parallel_runs(images: Path, val: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    folders = [out / row.key / "seed_0" for row in rows.read("table3").rows[:2]]
    process = start(images, val, out, "--jobs", "2", "--steps", "3000")
    wait_for(process, lambda: all(count_lines(folder / "metrics.jsonl") >= 3 for folder in folders))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "To resume, run: " in output
    for folder in folders:  # each saved its current step
        steps = count_lines(folder / "metrics.jsonl")
        assert (folder / "checkpoints" / f"step_{steps:08d}").is_dir()
    assert "Traceback" not in errors


def test_plan_by_hand(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    options = ("--data", images, "--val", val, "--seeds", "2", "--epochs", "48", "--batch_size", "36")
    speed = ("--images_per_second", "2")
    assert main(["study", "plan", "table4", *MICRO, *map(str, options), *speed, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert not out.exists()
    # 30 images, 48 epochs, 36 a step: 40 steps, 1,440 images; twice; at 2 a second that is 0.4 hours.
    assert [line.split()[-4:] for line in printed if line.startswith("HPM  ")] == [["2", "2,880", "2", "0.40"]]
    longer = next(line for line in printed if line.startswith("HPM, 4 times"))
    assert longer.split()[-4:] == ["2", "11,520", "2", "1.60"]
    # lengths 1, 1, 8, 4, 8, 4
    assert printed[-1].startswith("12 runs, 74,880 images, 10.40 hours")
    assert "fine-tuning (36 images)" in printed[-1]  # 12 runs, a tenth of an epoch of 30 images


def test_plan_measures_the_speed(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(images), "--val", str(val), "--out", str(tmp_path / "study")]
    assert main(["study", "plan", "tableD", *MICRO, *options]) == 0
    printed = capsys.readouterr().out
    assert "?" not in printed
    assert "5 runs, 3,200 images" in printed
    assert "fine-tuning (0 images)" in printed  # these rows are supervised themselves
    assert not (tmp_path / "study").exists()


def test_mistakes_are_one_line(images: Path, val: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "study"
    options = ("--data", images, "--val", val, "--steps", "2")
    assert study("tableS4", out, *options) == 0
    line = fails("study", "tableS4", *MICRO, *options, "--out", out, "--optim.lr", "0.5")
    assert "--out: " in line
    assert "optim.lr was None, now 0.5" in line
    line = fails("study", "table3", *MICRO, *options, "--out", out)
    assert "has table tableS4, now table3; choose another --out" in line
    line = fails("study", "tableS4", *MICRO, "--data", images, "--val", images, "--steps", "2", "--out", out)
    assert f"has val {val}, now {images}" in line
    assert "did you mean 'table3'" in fails("study", "tabel3", *MICRO, "--out", out)
    assert "--out: expected a folder" in fails("study", "table3", *MICRO)
    assert "--data and --val: scale tiny has no images of its own" in fails(
        "study", "table3", "--out", tmp_path / "new"
    )
    assert "--val: " in fails("study", "table3", *MICRO, "--val", tmp_path / "none", "--out", tmp_path / "new")
    assert "label" in fails("study", "table3", *MICRO, "--val", val / "class_0", "--out", tmp_path / "new")
    assert "--optim.lrr" in fails("study", "table3", *MICRO, "--optim.lrr", "1", "--out", tmp_path / "new")
    assert "--json: hardpatch study plan only prints" in fails("study", "plan", "table3", *MICRO, "--json", out)
    assert "--images_per_second" in fails("study", "table3", *MICRO, "--images_per_second", "5", "--out", out)
    assert not (tmp_path / "new").exists()
