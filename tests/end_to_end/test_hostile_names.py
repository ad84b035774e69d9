"""File and class names with escapes of the terminal, line breaks and bytes that are no UTF-8, in every output."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hardpatch.cli import main
from tests.end_to_end.conftest import SMALL

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write two classes of six images and a broken one."""
    root = os.fsencode(tmp_path_factory.mktemp("set")) + b"/\x1b[31mset\nx\xe9"
    rng = np.random.default_rng(0)
    for name in (b"cl\x1b[31mass\n1", b"two\xff"):
        os.makedirs(root + b"/" + name)
        for k in range(6):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(file, "PNG")
            Path(os.fsdecode(root + b"/%s/i\x1b[2J\n%d.png" % (name, k))).write_bytes(file.getvalue())
        Path(os.fsdecode(root + b"/" + name + b"/\x1b]0;bad\x07\n.png")).write_bytes(b"junk")
        Path(os.fsdecode(root + b"/" + name + b"/note\x1b[1m\n.txt")).write_bytes(b"x")
    return os.fsdecode(root)


def test_every_verb(hostile: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets, device = ["--train", hostile, "--val", hostile], ["--device", "cpu", "--workers", "0"]
    lenient = ["--max_bad_fraction", "0.5"]
    out = {name: str(tmp_path / name) for name in ("run", "finetuned", "score", "e.parquet")}
    for command in (
        ["knn", str(run), *sets, *device, *lenient],
        ["embed", str(run), hostile, "--out", out["e.parquet"], *device, *lenient],
        ["score", str(run), hostile, "--out", out["score"], "--draws", "2", *device, *lenient],
        ["check", hostile, "--workers", "0"],
        ["stats", hostile],
        ["finetune", str(run), *sets, "--out", out["finetuned"], "--epochs", "1", *device, *lenient],
        ["pretrain", *SMALL, "--data", hostile, "--steps", "2", "--data.max_bad_fraction", "0.5", "--out", out["run"]],
    ):
        assert main(command) in (0, 1), command  # 1 where check finds what it finds
        said = capsys.readouterr()
        for line in (said.out + said.err).split("\n"):
            assert not CONTROL.search(line.rpartition("\r")[2]), command
            assert not line.startswith(("x\\xe9", "1/", "bad")), "a name is not torn apart"
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".md", ".txt", ".csv", ".yaml", ".html", ".jsonl")]
    assert len(texts) >= 5
    for path in texts:
        assert not CONTROL.search(path.read_text(encoding="utf-8")), path
    assert yaml.safe_load(Path(out["run"], "config.yaml").read_text())["data"]["path"] is not None
