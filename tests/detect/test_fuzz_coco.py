"""COCO files of any structure: one line, or sound masks; run in a process of its own, which pycocotools could end."""

import os
import subprocess
import sys
from pathlib import Path


def test_nothing_in_a_coco_file_reaches_pycocotools_unchecked() -> None:
    name = str(os.getpid())
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.detect.coco_structures", name],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "files" in run.stdout
    print(run.stdout)
