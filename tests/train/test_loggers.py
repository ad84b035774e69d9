"""Loggers of a run: what each of them has after a run that was resumed, and that none of them ends a training."""

import csv
import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from hardpatch.errors import UserError
from hardpatch.train import loggers
from hardpatch.train.metrics import MetricsLog, logged_pictures, read_metrics

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: hardpatch[wandb]")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed: hardpatch[mlflow]")

RESUMED = """
import sys
from pathlib import Path
from PIL import Image
from hardpatch.train.log import show_log
from hardpatch.train.metrics import MetricsLog, logged_pictures
folder, name, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
show_log()
(folder / "pictures").mkdir(exist_ok=True)
log = MetricsLog(folder, step, name)
log.write({"step": step + 1, "loss": 2.0 / (step + 1)})
Image.new("RGB", (8, 8), (40 * step, 0, 0)).save(folder / "pictures" / "during.png")
log.write_pictures(step + 1)
log.close()
with logged_pictures(folder, step + 1, name):
    Image.new("RGB", (8, 8)).save(folder / "pictures" / f"end_{step}.png")
"""


def run_twice(folder: Path, name: str, **environment: str) -> list[str]:
    """Log a step and pictures, then, as a resumed run, another step, each in a process; returns what each says."""
    (folder / "config.yaml").write_text("seed: 3\noptim: {lr: 0.001}\n")
    said = []
    for step in ("0", "1"):
        command = [sys.executable, "-c", RESUMED, str(folder), name, step]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=500)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    return said


def test_csv_has_a_line_for_each_step_and_a_column_for_each_metric(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, loggers="csv")
    log.write({"step": 1, "loss": 2.0})
    log.write({"step": 2, "loss": 1.5})
    log.write({"step": 2, "knn_top1": 0.25})  # an evaluation after that step
    log.write({"step": 3, "loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 2, "csv").close()  # killed, and resumed from step 2
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "loss": "2.0", "knn_top1": ""},
            {"step": "2", "loss": "1.5", "knn_top1": "0.25"},
        ]
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_has_the_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "old.png")
    log = MetricsLog(tmp_path)
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "pictures" / "new.png")
    log.write_pictures(7)
    log.write_pictures(8)  # nothing has changed
    log.close()
    with logged_pictures(tmp_path, 9, "tensorboard"):
        Image.new("RGB", (6, 4), (0, 255, 0)).save(tmp_path / "pictures" / "curves.png")
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["pictures/new", "pictures/curves"]
    (image,) = events.Images("pictures/new")
    assert (image.step, image.width, image.height) == (7, 6, 4)
    assert image.encoded_image_string == (tmp_path / "pictures" / "new.png").read_bytes()
    assert [image.step for image in events.Images("pictures/curves")] == [9]


def test_a_logger_that_fails_in_the_middle_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("hardpatch").propagate = True
    log = MetricsLog(tmp_path, loggers="csv,tensorboard")
    log.write({"step": 1, "loss": 2.0})
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").mkdir()  # it cannot be written any more
    for step in (2, 3, 4):
        log.write({"step": step, "loss": 1.0})
    log.close()
    # another test may have added the handler once more, which then sees each record twice
    (line,) = {id(record): record.getMessage() for record in caplog.records}.values()
    assert line.startswith("--logger csv: ")
    assert line.endswith("; the training goes on without it, metrics.jsonl has all metrics")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "names"),
    [("tensorboard", ("tensorboard",)), ("none", ()), ("csv, tensorboard,csv", ("csv", "tensorboard"))],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    assert loggers.logger_names(text) == names


@pytest.mark.parametrize("text", ["tensorbord", "none,csv", "csv,,wandb"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(UserError, match="--logger: expected names from tensorboard, csv, wandb, mlflow"):
        loggers.logger_names(text)


@needs_wandb
def test_weights_and_biases_offline(tmp_path: Path) -> None:
    said = run_twice(tmp_path, "wandb", WANDB_MODE="offline", WANDB_PROJECT="trial")
    name = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    assert all(f"wandb: run {name}, " in text for text in said)
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(files) == 4  # each call opens the run twice, the second time for the pictures of its end
    content = b"".join(file.read_bytes() for file in files)
    assert content.count(b"trial") >= 4
    assert b"optim.lr" in content
    found = (tmp_path / "wandb").glob("*/files/media/images/pictures/*.png")
    pictures = {path.name.rsplit("_", 2)[0] for path in found}
    assert pictures == {"during", "end_0", "end_1"}
    assert b"loss" in content


@needs_mlflow
def test_mlflow_in_files(tmp_path: Path) -> None:
    run_twice(tmp_path, "mlflow", MLFLOW_TRACKING_URI="")
    name = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    (run,) = (tmp_path / "mlruns").glob(f"*/{name}")
    lines = [line.split() for line in (run / "metrics" / "loss").read_text().splitlines()]
    assert [(float(value), int(step)) for _, value, step in lines] == [(2.0, 1), (1.0, 2)]
    assert (run / "params" / "optim.lr").read_text() == "0.001"
    pictures = sorted(path.name for path in (run / "artifacts" / "pictures").iterdir())
    assert pictures == ["during.png", "end_0.png", "end_1.png"]
    assert "status: 3" in (run / "meta.yaml").read_text()  # finished
