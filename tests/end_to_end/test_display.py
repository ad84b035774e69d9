"""What trainings print with --display: JSON, quiet, plain lines as ever, a live view on a terminal."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from hardpatch.cli import main
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL
from tests.terminal import Terminal

BRIEF = [*SMALL, "--steps", "6", "--verdict.checks", "1", "--verdict.images", "16"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: the pictures of a finished run are not looked at."""
    monkeypatch.setattr("hardpatch.pretrain.run.write_pictures", lambda job: ())


def pretrain(images: Path, out: Path, *options: str) -> None:
    assert main(["pretrain", *BRIEF, "--data", str(images), "--out", str(out), *options]) == 0


def result_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


def test_json_is_all_that_is_printed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    pretrain(images, out, "--display", "json")
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if not line.endswith("the last one counts")] == []
    *events, result = (json.loads(line) for line in captured.out.splitlines())
    assert result == result_of(out)
    assert {each["event"] for each in events} == {"start", "metrics", "evaluation", "log"}
    assert next(each for each in events if each["event"] == "start") == {
        "event": "start",
        "step": 0,
        "steps": 6,
        "batch_size": 16,
        "run": str(out),
    }
    shown: dict[int, dict[str, Any]] = {}
    for each in events:
        if each.pop("event") in ("metrics", "evaluation"):
            shown.setdefault(each["step"], {}).update(each)
    assert list(shown.values()) == read_metrics(out / "metrics.jsonl")
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert all(each["message"] in log for each in events if "message" in each)
    assert f"{out}: 6 steps done" in log


def test_quiet_prints_the_result_alone(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    pretrain(images, out, "--display", "quiet")
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if not line.endswith("the last one counts")] == []
    assert captured.out.startswith(f"{out}: 6 steps done, weights in ")
    assert "Learned: " in captured.out


def test_plain_lines_are_what_the_log_holds(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the lines are those of earlier versions, and with or without the option the same."""
    out = tmp_path / "run"
    pretrain(images, out)
    captured = capsys.readouterr()
    rows = read_metrics(out / "metrics.jsonl")
    lines = [line for line in captured.err.splitlines() if line.startswith("step ")]
    assert lines[1] == (
        f"step 1/6  epoch {rows[1]['epoch']:.2f}  loss {rows[1]['loss']:.4f}  reconstruction_loss "
        f"{rows[1]['reconstruction_loss']:.4f}  pair_accuracy {rows[1]['pair_accuracy']:.3f}  spearman "
        f"{rows[1]['spearman']:.3f}  alpha {rows[1]['alpha']:.2f}  images_per_second "
        f"{rows[1]['images_per_second']:.0f}  left {5 * 16 / rows[1]['images_per_second'] / 60:.1f} min"
    )
    log = (out / "log.txt").read_text(encoding="utf-8")
    stamp = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", re.MULTILINE)
    said = stamp.sub("", log).splitlines()
    assert said[0].startswith("begun with hardpatch ")
    assert sorted(said[1:]) == sorted([*captured.err.splitlines(), *captured.out.splitlines()])


def test_errors_and_a_resume_are_in_the_log(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    nan = ["--optim.lr", "1e30", "--optim.clip", "null", "--bad_steps", "0", "--verdict.checks", "0"]
    assert main(["pretrain", *BRIEF, *nan, "--data", str(images), "--out", str(out)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hardpatch pretrain: ")
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert f" ERROR {error}" in log
    assert main(["pretrain", "--resume", "--out", str(out)]) == 1
    again = (out / "log.txt").read_text(encoding="utf-8")
    assert again.startswith(log)
    assert f" INFO resumed with hardpatch 0.1.0: hardpatch pretrain --resume --out {out}\n" in again


def test_a_run_on_a_terminal(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "[red]x[/red] é"
    command = ["-m", "hardpatch", "pretrain", *BRIEF, "--data", str(images), "--steps", "400", "--out", str(out)]
    terminal = Terminal([*command, "--verdict.checks", "0"], columns=100, lines=30)
    terminal.read(lambda text: "loss predictor" in text, seconds=300)
    assert f"training  {out}" in terminal.text
    terminal.process.send_signal(signal.SIGINT)
    terminal.read(seconds=300)
    assert terminal.process.returncode == 130
    assert terminal.history.count("loss predictor") == 1
    assert "nothing is lost; resume with: hardpatch pretrain --resume --out" in terminal.history
    assert not terminal.cursor_hidden
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert " INFO stopping after this step, with a checkpoint\n" in log
    assert " INFO stopped after step " in log
