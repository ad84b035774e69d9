"""Trainings from shards and by row groups: the same as from the files, also after a kill and in several processes."""

import shutil
from pathlib import Path

import pytest

from hardpatch.cli import main
from hardpatch.data import parquet
from hardpatch.train.metrics import read_metrics
from tests.data.small import png, write_parquet
from tests.end_to_end.conftest import SMALL


def test_a_run_by_row_groups_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
    path = write_parquet(tmp_path / "a.parquet", [png(3 * k) for k in range(64)], row_group_size=8)
    settings = [*SMALL, "--data", str(path), "--data.shuffle", "row_groups", "--data.shuffle_window", "2"]
    settings += ["--verdict.checks", "0", "--train.log_every", "1", "--train.checkpoint_steps", "3"]
    assert main(["pretrain", *settings, "--steps", "8", "--out", str(tmp_path / "whole")]) == 0
    assert "data.shuffle row_groups: by row groups of 8 images, 2 of 8 mixed at a time" in capsys.readouterr().err
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_00000008")
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "part")]) == 0
    whole, part = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "part"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in part]
