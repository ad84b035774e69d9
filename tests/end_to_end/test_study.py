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


def read_table(out: Path, table: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / table / "table.json").read_text())
    return content


def measurements(out: Path) -> dict[str, Any]:
    """Measurements of each run, without the facts that differ between calls."""
    return {
        str(path.relative_to(out)): json.loads(path.read_text())["details"]
        for path in sorted(out.glob("runs/*/seed_*/measurements.json"))
    }


def test_two_tables_share_their_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert study("table3", out, "--json", str(tmp_path / "result.json")) == 0
    assert "table3: 6 rows, 4 runs, 4 of them to do" in capsys.readouterr().out
    content = read_table(out, "table3")
    assert json.loads((tmp_path / "result.json").read_text()) == content
    assert [row["name"] for row in content["rows"]] == [row.name for row in rows.read("table3").rows]
    for row in content["rows"]:
        assert row["missing"] is None
        assert set(row["ours"]) == {"knn", "linear", "finetune"}
        assert 0.1 < row["ours"]["linear"]["mean"] < 1.0  # ten classes
    assert content["rows"][0]["ours"] == content["rows"][3]["ours"]  # one run, in two rows
    text = (out / "table3" / "table.md").read_text()
    assert "**operation: argmax (alpha 0 to 0.5)**" in text
    assert "| 82.95 |" in text
    assert imread(out / "table3" / "table.png").shape[1] > 1000
    assert "hardpatch study table3 --scale micro" in (out / "README.md").read_text()

    # Another table in the same folder trains what is not trained yet: MAE and the absolute loss.
    before = measurements(out)
    assert study("table4", out) == 0
    assert "table4: 3 rows, 3 runs, 2 of them to do" in capsys.readouterr().out
    after = measurements(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    headings = [line for line in (out / "README.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == [f"## {rows.read(name).title}" for name in ("table3", "table4")]

    # A trained run without a measurement is measured and not trained again.
    default = out / "runs" / "hpm" / "seed_0"
    weights = default / "checkpoints" / "step_00000020" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    result = json.loads((default / "measurements.json").read_text())
    del result["details"]["knn"], result["metrics"]["knn"]
    (default / "measurements.json").write_text(json.dumps(result))
    assert study("table3", out) == 0
    assert "4 runs, 1 of them to do" in capsys.readouterr().out
    assert measurements(out) == after
    assert weights.stat().st_mtime_ns == trained
    assert main(["info", str(default)]) == 0


def test_every_host(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    options = ("--data", images, "--val", val, "--steps", "4", "--measures", "knn")
    assert study("hosts", out, *options) == 0
    assert (out / "trained_tokenizer" / "tokenizer.safetensors").is_file()
    lines = read_table(out, "hosts")["rows"]
    assert len(lines) == 9
    assert all(set(line["ours"]) == {"knn"} for line in lines)
    assert "9 rows, 10 runs, 10 of them to do" in capsys.readouterr().out
    # Another study can use the tokenizer of this one.
    other = tmp_path / "other"
    tokenizer = ("--tokenizer", out / "trained_tokenizer")
    assert study("tableB", other, *options, *tokenizer) == 0
    shared = measurements(other)
    assert shared == {name: value for name, value in measurements(out).items() if name in shared}
    assert len(shared) == 4
    assert not (other / "trained_tokenizer").exists()


def test_rows_that_cannot_be_run_are_in_the_table_with_a_reason(
    images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", images, "--val", val, "--steps", "2", "--measures", "knn")
    assert study("table1", tmp_path, *options) == 0
    printed = capsys.readouterr().out
    assert "DINO features + predicting loss + learned masks: not run, it needs --dino_weights FILE" in printed
    lines = read_table(tmp_path, "table1")["rows"]
    missing = {line["name"]: line["missing"] for line in lines if line["missing"]}
    assert len(missing) == 6
    assert missing["CLIP features"] == "not run: it needs --clip_weights FILE"
    text = (tmp_path / "table1" / "table.md").read_text()
    assert "| CLIP features (not run: it needs --clip_weights FILE) |" in text
    # a network that was trained under labels stands in for them, in rows that say so
    stand_in = [line for line in lines if not line["in_the_paper"]]
    assert [set(line["ours"]) for line in stand_in] == [{"knn"}] * 3
    assert (tmp_path / "supervised_teacher" / "measurements.json").is_file()


def test_rows_from_scratch_and_with_the_larger_encoder(images: Path, val: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--val", val, "--steps", "1", "--measures", "finetune")
    assert study("table6", tmp_path, *options, "--tokenizer", tokenizer_of(images, tmp_path)) == 0
    content = {line["name"]: line for line in read_table(tmp_path, "table6")["rows"]}
    assert set(content["scratch"]["ours"]) == {"finetune", "finetune_large"}
    assert set(content["SimMIM, 800 epochs"]["ours"]) == {"finetune"}
    assert content["DINO, 1600 epochs"]["missing"].startswith("not run: the paper's figure, cited")
    assert content["HPM, 800 epochs"]["runs"] == ["hpm-length_4", "hpm-large-length_4"]
    assert "| fine-tune | fine-tune, width 48 |" in (tmp_path / "table6" / "table.md").read_text()


def tokenizer_of(images: Path, folder: Path) -> Path:
    """Train visual tokens for a step."""
    out = folder / "tokens"
    options = "--steps 1 --batch_size 2 --image_size 32 --patch_size 4 --vocabulary 32 --width 16 --workers 0"
    assert main(["tokenizer", "--data", str(images), "--out", str(out), *options.split()]) == 0
    return out


def test_supervised_rows_of_table_d(images: Path, val: Path, tmp_path: Path) -> None:
    assert study("tableD", tmp_path, "--data", images, "--val", val, "--steps", "4", "--seeds", "2") == 0
    for line in read_table(tmp_path, "tableD")["rows"]:
        assert set(line["ours"]) == {"supervised", "whole"}
        assert line["ours"]["whole"]["seeds"] == 2
    assert len(list(tmp_path.glob("runs/hpm/seed_*/checkpoints"))) == 2


def test_speedup_of_table_s4(images: Path, val: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--val", val, "--steps", "1", "--measures", "knn", "--seeds", "2")
    assert study("tableS4", tmp_path, *options) == 0
    content = {line["name"]: line["ours"] for line in read_table(tmp_path, "tableS4")["rows"]}
    assert all(ours["speedup"]["seeds"] == 1 for ours in content.values())
    assert content["12 blocks"]["speedup"]["mean"] < content["1 block"]["speedup"]["mean"]


def test_a_row_that_diverges_is_reported(
    images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("table4", tmp_path, "--data", images, "--val", val, "--optim.lr", "1e30", "--optim.clip", "null") == 1
    assert "mae, seed 0: failed: " in capsys.readouterr().err
    lines = read_table(tmp_path, "table4")["rows"]
    assert all(line["missing"].startswith("not run: ") for line in lines)
    assert "NaN" in lines[0]["missing"]


def test_runs_in_parallel_give_the_same_results(images: Path, val: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--val", val, "--steps", "4")
    assert study("table4", tmp_path / "one", *options) == 0
    assert study("table4", tmp_path / "two", *options, "--jobs", "2") == 0
    assert measurements(tmp_path / "one") == measurements(tmp_path / "two")
    assert len(measurements(tmp_path / "one")) == 3


COMMAND = [sys.executable, "-m", "hardpatch", "study", "table4", *MICRO, "--train.checkpoint_steps", "5"]


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
    second = out / "runs" / "hpm-predicting_loss_absolute" / "seed_0"
    process = start(images, val, out)
    wait_for(process, lambda: count_lines(second / "metrics.jsonl") >= 8)
    process.send_signal(kind)
    output, errors = process.communicate(timeout=60)
    assert not (second / "measurements.json").exists()
    assert len(measurements(out)) == 1
    if kind == signal.SIGKILL:
        assert process.returncode == -kind
    else:
        assert process.returncode == 128 + kind, errors
        assert "To resume, run: hardpatch study table4 --scale micro" in output
        assert [bool(line["ours"]) for line in read_table(out, "table4")["rows"]] == [True, False, False]
        assert read_table(out, "table4")["rows"][1]["missing"] == "not run: pending"
    process = start(images, val, out)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "3 runs, 2 of them to do" in output
    assert measurements(out) == measurements(uninterrupted)


def test_a_signal_stops_all_parallel_runs(images: Path, val: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    folders = [out / "runs" / name / "seed_0" for name in ("mae", "hpm-predicting_loss_absolute")]
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
