"""hardpatch knn, linear and embed at another image size and on several blocks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.cli import main

VIEW = ["--image_size", "24", "48", "--blocks", "-1", "-2", "--workers", "0", "--device", "cpu"]


@pytest.mark.parametrize("verb", ["knn", "linear"])
def test_accuracies(verb: str, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--train", str(images), "--val", str(images), "--json", str(tmp_path / "result.json")]
    assert main([verb, str(run), *sets, *VIEW, "--cache", str(tmp_path / "cache")]) == 0
    assert "--image_size 24 48: positions of" in capsys.readouterr().err
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["image_size"], result["blocks"]) == ([24, 48], [-1, -2])
    assert result["top1"] > 0.5
    assert main([verb, str(run), *sets, "--workers", "0", "--cache", str(tmp_path / "cache")]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2  # both sets are the same images, at two sizes


def test_embed(run: Path, images: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert main(["embed", str(run), str(images), "--out", str(tmp_path / "a.parquet"), *VIEW]) == 0
    assert len(pq.read_table(tmp_path / "a.parquet").column("embedding")[0]) == 2 * 32


def test_mistakes(run: Path, images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    sets = ["--train", images, "--val", images]
    assert "--image_size: expected multiples of the patch size" in fails("knn", run, *sets, "--image_size", 33)
    assert "--blocks: expected numbers from 1 to 2" in fails("linear", run, *sets, "--blocks", 99)
    out = tmp_path / "a.parquet"
    assert "--blocks: expected numbers" in fails("embed", run, images, "--out", out, "--blocks", 99)
    assert not out.exists()
