"""Embeddings of images, and evaluation in several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import hardpatch
from hardpatch.cli import main
from hardpatch.data.sources import open_images
from hardpatch.measure.labels import eval_transform


def test_embed(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mixed").mkdir()
    pictures = sorted(images.rglob("*.jpg"))[:5]
    for picture in pictures:
        (tmp_path / "mixed" / f"{picture.parent.name}-{picture.name}").write_bytes(picture.read_bytes())
    (tmp_path / "mixed" / "aa.jpg").write_bytes(b"no picture")
    out = tmp_path / "vectors.parquet"
    arguments = ["embed", str(run), str(tmp_path / "mixed"), "--out", str(out), "--batch_size", "2", "--workers", "0"]
    assert main(arguments) == 0
    assert "5 vectors of 32 numbers, left out: 1" in capsys.readouterr().out
    table = pq.read_table(out).to_pylist()
    source = open_images([str(tmp_path / "mixed")])
    assert [row["path"] for row in table] == [source.name(i) for i in range(1, 6)]  # aa.jpg comes first
    model = hardpatch.load(run)
    pixels = eval_transform(model, source)(source.image(3)).unsqueeze(0)
    with torch.no_grad():
        expected = model.encode(model.normalize(pixels))[0, 1:].mean(dim=0)
    np.testing.assert_allclose(table[2]["embedding"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_embed_mistakes(run: Path, images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "there.parquet").write_bytes(b"")
    assert "--out: expected a file that does not exist" in fails(
        "embed", run, images, "--out", tmp_path / "there.parquet"
    )
    assert "nowhere" in fails("embed", run, tmp_path / "nowhere", "--out", tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("verb", ["knn", "linear"])
def test_two_processes_compute_the_same_accuracy(verb: str, run: Path, images: Path, tmp_path: Path) -> None:
    common = [verb, str(run), "--train", str(images), "--val", str(images), "--workers", "0", "--device", "cpu"]
    common += ["--batch_size", "7", *(["--epochs", "3"] if verb == "linear" else [])]
    assert main([*common, "--no_cache", "--json", str(tmp_path / "one.json")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += ["-m", "hardpatch", *common, "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "two.json")]
    process = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("student: ") == 1  # only one process prints
    assert main([*common, "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "cached.json")]) == 0
    one, two, cached = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "cached"))
    assert one["top1"] == two["top1"] == cached["top1"]
    assert one["rows"] == two["rows"] == cached["rows"]
