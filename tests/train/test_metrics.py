import importlib
import json
from pathlib import Path
from typing import Any

from hardpatch.train.metrics import MetricsLog, read_metrics


def test_lines_after_the_checkpoint_and_an_incomplete_line_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]
    log = MetricsLog(tmp_path, step=20)
    log.write({"step": 25, "loss": 3.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 25]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_row_includes_the_evaluation_after_its_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"step": 10, "loss": 2.0})
    log.write({"step": 10, "knn_top1": 0.5})
    log.write({"step": 20, "loss": 1.0})
    log.close()
    rows = [{"step": 10, "loss": 2.0, "knn_top1": 0.5}, {"step": 20, "loss": 1.0}]
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    assert read_metrics(tmp_path / "missing.jsonl") == []
    (tmp_path / "start").mkdir()
    log = MetricsLog(tmp_path / "start")
    log.write({"step": 0, "knn_top1": 0.1})
    log.close()
    again = MetricsLog(tmp_path / "start")  # killed before its first checkpoint
    again.close()
    assert not log.evaluated
    assert again.evaluated
    for step, evaluated in ((20, False), (10, True)):  # step 10 comes last: it drops the lines of step 20
        log = MetricsLog(tmp_path, step)
        log.close()
        assert log.evaluated == evaluated


def test_broken_lines_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n\xff\n[3]\n{"loss": 1.0}\n{"step": 4, "loss": 1.5}\n{"st'
    )
    assert [row["step"] for row in read_metrics(file)] == [1, 4]


def test_tensorboard_reads_the_curves_of_a_resumed_run(tmp_path: Path) -> None:
    for step, losses in ((0, (4.0, 3.0, 2.0)), (2, (1.0,))):
        log = MetricsLog(tmp_path, step)
        for number, loss in enumerate(losses, step + 1):
            log.write({"step": number, "loss": loss})
        log.close()
    accumulator: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("loss")] == [(1, 4.0), (2, 3.0), (3, 1.0)]
