"""Throughput of data loading, for real files and for the embedded set: `hardpatch bench data`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.bench.data_loading import ALL, DECODE, DECODE_FOR_CROP, READ, RESIZE, _verdict
from hardpatch.bench.timing import Quartiles
from hardpatch.cli import main
from tests.data.small import MANY_WORKERS

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)

QUICK = ["--seconds", "0.05", "--batch_size", "8", "--image_size", "32", "--workers", "0", "1", "--device", "cpu"]


def test_every_stage_of_files(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "aa.jpg").write_bytes(b"no picture")
    for k, path in enumerate(sorted(images.rglob("*.jpg"))):
        (tmp_path / "images" / f"{k:02d}.jpg").write_bytes(path.read_bytes())
    out = tmp_path / "speed.json"
    assert main(["bench", "data", "--data", str(tmp_path / "images"), *QUICK, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "31 images, 40 x 48 on average, to 32 px" in printed
    numbers = json.loads(out.read_text())
    assert list(numbers["stages"]) == [READ, DECODE, DECODE_FOR_CROP, RESIZE, ALL]
    assert set(numbers["loader"]) == {"0", "1"}
    rates = [*(rate["median"] for rate in numbers["stages"].values()), *numbers["loader"].values()]
    rates += [numbers["host"], numbers["device"]]
    assert all(rate > 10 for rate in rates)
    assert [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")] == [
        "|",
        *(f"| one core: {stage}" for stage in (READ, DECODE, DECODE_FOR_CROP, RESIZE, ALL)),
        *("| loader, workers 0", "| loader, workers 1"),
        next(line for line in printed.splitlines() if "in_memory host" in line).split(" | ")[0],
        "| in_memory device",
    ]
    assert numbers["verdict"] in printed
    assert printed.count("Bottleneck: ") == 1


def test_the_embedded_set_is_not_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert main(["bench", "data", *QUICK, "--images", "100", "--json", str(out)]) == 0
    assert "4000 images, 100 of them measured, 32 x 32 on average" in capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert list(numbers["stages"]) == [RESIZE, ALL]
    assert "Bottleneck: resizing" in numbers["verdict"]


@pytest.mark.parametrize(
    ("read", "decode", "loader", "host", "device", "limit", "advice"),
    [
        (0.1, 2.0, {0: 400, 2: 800}, 0.0, 0.0, "decoding, 77%", "--data.workers 2 on a set made smaller with"),
        (9.0, 2.0, {0: 100, 2: 200}, 0.0, 0.0, "reading, 78%", "shrink --side 256`"),
        (0.1, 2.0, {0: 400, 2: 800}, 2000.0, 0.0, "decoding", "--data.in_memory host --data.workers 2 (2000 images/s)"),
        (0.1, 2.0, {0: 400, 2: 800}, 2000.0, 9000.0, "decoding", "--data.in_memory device (9000 images/s)"),
        (0.1, 0.2, {0: 400, 2: 800}, 900.0, 500.0, "resizing, 62%", "--data.workers 2, and use more cores"),
        (0.1, 0.2, {0: 900, 2: 800}, 900.0, 500.0, "resizing, 62%", "set --data.workers 0."),
    ],
)
def test_verdict(
    read: float, decode: float, loader: dict[int, float], host: float, device: float, limit: str, advice: str
) -> None:
    times = {READ: read, DECODE: decode, DECODE_FOR_CROP: decode, RESIZE: 0.5, ALL: read + decode + 0.5}  # ms
    stages = {name: Quartiles(*[1000 / time] * 3) for name, time in times.items()}
    verdict = _verdict(stages, loader, host, device, (500, 700), 224)
    assert limit in verdict
    assert advice in verdict


def test_mistakes(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "--data: " in fails("bench", "data", "--data", tmp_path / "missing")
    assert "--seconds: expected a number above 0" in fails("bench", "data", "--seconds", "0")
    assert "--crop_scale: expected 0 <" in fails("bench", "data", "--crop_scale", "0.5", "0.2")
    assert "--workers: expected a whole number from 0, got -1" in fails("bench", "data", "--workers", "-1")
    assert "expected a number from 1, or null" in fails("bench", "data", "--shrink_on_decode", "0.5")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert "none of 1 images can be decoded" in fails("bench", "data", "--data", tmp_path / "broken.jpg")


@pytest.mark.parametrize("kind", ["folder", "shards", "parquet"])
def test_a_simulated_network(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    data = images if kind == "folder" else tmp_path / kind
    if kind != "folder":
        verb = ["shard"] if kind == "shards" else ["shrink", "--side", "100"]
        assert main([*verb, str(images), "--out", str(data), "--workers", "0"]) == 0
        capsys.readouterr()
    out = tmp_path / "speed.json"
    command = ["bench", "data", "--data", str(data), *QUICK, "--latency", "20", "--bandwidth", "50", "--json", str(out)]
    assert main(command) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Simulated network"))
    assert "every read waits 20 ms, and all processes together get 50 MB/s" in line
    rate = json.loads(out.read_text())["stages"][READ]["median"]
    if kind == "parquet":
        assert "held in memory" in line
        assert rate > 50
    else:
        assert line.endswith("a read is one image. Opening the set is not slowed down.")
        assert rate < 50
