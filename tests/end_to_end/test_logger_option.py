"""The option --logger of the verbs that train."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hardpatch.cli import main
from tests.end_to_end.conftest import SMALL


def test_a_run_with_csv_and_without_tensorboard(images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    run = tmp_path / "run"
    command = ["pretrain", *SMALL, "--checks", "0", "--data", str(images), "--steps", "2", "--out", str(run)]
    assert "did you mean 'csv'" in fails(*command, "--logger", "cvs")
    assert not run.exists()
    assert main([*command, "--logger", "csv"]) == 0
    assert not (run / "tensorboard").exists()
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_missing_library_is_one_line_before_the_training(images: Path, tmp_path: Path) -> None:
    """In a process whose search path has no wandb."""
    code = (
        "import importlib.util, sys; found = importlib.util.find_spec\n"
        "from hardpatch.train import loggers\n"
        "loggers.find_spec = lambda name: None if name == 'wandb' else found(name)\n"
        "from hardpatch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for verb in (["pretrain", *SMALL], ["tokenizer", "--steps", "1"]):
        command = [*verb, "--data", str(images), "--out", str(tmp_path / "run"), "--logger", "csv,wandb"]
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=500)
        assert done.returncode == 2
        assert "--logger: wandb needs a package that is not installed: pip install 'hardpatch[wandb]'" in done.stderr
        assert not (tmp_path / "run").exists()
