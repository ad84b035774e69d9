"""A disk that fills up in the middle of a file, has no inodes or is read-only; and what comes once there is room."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardpatch.cli import main
from hardpatch.train import checkpoint
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from tests.end_to_end import test_full_disk as known
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_full_disk import fill
from tests.end_to_end.test_jobs import STEPS, Job, assert_same_checkpoint, newest

data, disk, encoder, jobs = known.data, known.disk, known.encoder, known.jobs  # fixtures
VERBS = ("embed", "score", "export", "shrink", "check", "knn")
KINDS = {
    "full": "No space left on device",
    "nearly full": "No space left on device",
    "no inodes": "No space left on device",
    "read-only": "Read-only file system",
}


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def spoil(disk: Path, kind: str) -> None:
    """Make a disk refuse what is written to it."""
    if kind == "read-only":
        remount(disk, "ro")
    elif kind == "no inodes":
        used = int(subprocess.check_output(["stat", "-f", "-c", "%c %d", str(disk)]).split()[0])
        free = int(subprocess.check_output(["stat", "-f", "-c", "%d", str(disk)]))
        remount(disk, f"nr_inodes={used - free}")
    else:
        fill(disk, 8192 if kind == "nearly full" else 0)


def files(disk: Path) -> list[str]:
    return [path.name for path in disk.rglob("*") if path.name != "filler"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_other_verbs(
    verb: str, kind: str, run: Path, images: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: dict[str, list[object]] = {
        "embed": ["embed", run, images, "--out", disk / "vectors.parquet", "--workers", "0"],
        "score": ["score", run, images, "--out", disk / "scores", "--pictures", "2", "--workers", "0"],
        "export": ["export", run, "--to", "timm", "--out", disk / "vit.safetensors"],
        "shrink": ["shrink", images, "--side", "16", "--out", disk / "small", "--workers", "0"],
        "check": ["check", images, "--workers", "0", "--json", disk / "report.json"],
        "knn": ["knn", run, "--train", images, "--val", images, "--json", disk / "knn.json", "--workers", "0"],
    }
    command = [str(word) for word in commands[verb]]
    spoil(disk, kind)
    capsys.readouterr()
    code = main(command)
    errors = capsys.readouterr().err.splitlines()
    if kind == "nearly full" and verb not in ("export", "score"):  # whose files may be small enough
        assert code in (0, 2), errors
        return
    assert code == 2, errors
    assert errors[-1].startswith(f"hardpatch {verb}: ")
    assert KINDS[kind] in errors[-1]
    assert [name for name in files(disk) if name != "scores"] == []
    remount(disk, "rw,size=20m,nr_inodes=1000")
    (disk / "filler").unlink(missing_ok=True)
    assert main(command) == 0


@pytest.mark.parametrize("kind", ["no inodes", "read-only"])
def test_a_training_that_cannot_start(kind: str, images: Path, disk: Path, fails: Callable[..., str]) -> None:
    spoil(disk, kind)
    line = fails("pretrain", *SMALL, "--data", images, "--steps", "2", "--out", disk / "run")
    assert line == (
        f"hardpatch pretrain: --out: expected a folder that can be written, got {disk / 'run'}: {KINDS[kind]}"
    )
    assert files(disk) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pretrain", "nearly full"), ("pretrain", "no inodes"), ("segment", "full"), ("tokenizer", "nearly full")],
)
@pytest.mark.usefixtures("one_thread")
def test_a_disk_that_refuses_a_checkpoint_and_has_room_later(
    name: str, kind: str, jobs: dict[str, Job], data: Path, disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remount(disk, "size=40m")
    whole, run = disk / "whole", disk / "run"
    jobs[name](whole, data)
    shutil.copytree(whole, tmp_path / "whole")
    shutil.rmtree(whole)

    def make_room() -> None:
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
        assert checkpoint.newest_whole(run) == run / "checkpoints" / "step_00000002"
        remount(disk, "rw,size=40m,nr_inodes=1000")
        (disk / "filler").unlink(missing_ok=True)

    class Disturbed(Silent):
        steps = 0

        def advance(self) -> None:
            self.steps += 1
            if self.steps == 3:
                spoil(disk, kind)
            elif self.steps == 5:
                make_room()

    jobs[name](run, data, progress=Disturbed())
    assert_same_checkpoint(newest(run), newest(tmp_path / "whole"))
    assert _losses(run) == _losses(tmp_path / "whole")
    assert f"the checkpoint of step 4 cannot be written to {run}: {KINDS[kind]}; the training goes on" in caplog.text


def _losses(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.parametrize("left", [8192, 0])
def test_a_disk_that_fills_up_after_the_last_step(
    left: int, jobs: dict[str, Job], data: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures are left out; the result is written by --resume."""
    remount(disk, "size=20m")
    run = disk / "run"

    class Filling(Silent):
        def stop(self) -> None:
            fill(disk, left)

    if left:
        jobs["pretrain"](run, data, progress=Filling())
    else:
        with pytest.raises(OSError, match="No space left on device"):
            jobs["pretrain"](run, data, progress=Filling())
    assert f"cannot write {run / 'pictures'}: No space left on device; the run goes on without it" in caplog.text
    assert newest(run).name == f"step_{STEPS:08d}"
    assert not list(run.rglob("*partial*"))
    assert (run / "result.json").exists() == bool(left)
    (disk / "filler").unlink()
    jobs["pretrain"](run, data, resume=True)
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS
    assert list((run / "pictures").glob("*.png"))
