"""Some random kills of two trainings, by the command that makes the table in docs/reliability.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "torture.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_runs_end_like_undisturbed_ones(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--rows", "segment,tokenizer x 2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--folder", str(tmp_path / "torture")], env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["4", "4"]
    assert [row[-3:] for row in rows] == [["yes", "yes", "yes |"]] * 2
