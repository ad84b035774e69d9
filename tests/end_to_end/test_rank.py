"""hardpatch rank: planted copies and noise are found, the loss is what it says, and a killed call goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import hardpatch
from hardpatch.cli import main
from hardpatch.interchange.load import load_pair
from hardpatch.measure.difficulty import fixed_masks
from tests.rank.textures import KINDS, texture

Complaint = Callable[..., str]
MACHINE = ("--workers", "0", "--device", "cpu")
PHOTOS, COPIES, NOISE = 90, 9, 4


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write textures of 48 px with a bright disk each, copies of some in other formats and sizes, and noise."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    for number in range(PHOTOS):
        pixels = texture(KINDS[number % 3], rng, 48)
        for _ in range(3):
            center, color = rng.uniform(6, 42, 2), rng.uniform(0, 255, 3)
            disk = (y - center[0]) ** 2 + (x - center[1]) ** 2 < rng.uniform(5, 14) ** 2
            pixels[disk] = color + 0.2 * pixels[disk]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"photo_{number:02d}.png")
    for number in range(COPIES):
        with Image.open(folder / f"photo_{number * 7:02d}.png") as image:
            if number % 3 == 0:
                image.save(folder / f"copy_{number}.jpg", quality=60)
            else:
                image.resize((40, 40) if number % 3 == 1 else (70, 70)).save(folder / f"copy_{number}.png")
    for number in range(NOISE):
        noise = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"noise_{number}.png")
    return folder


@pytest.fixture(scope="module")
def ranked(run: Path, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranked") / "out"
    assert main(["rank", str(run), str(planted), "--out", str(out), "--batch_size", "1", *MACHINE]) == 0
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "ranks.parquet").to_pylist()
    return rows


def test_planted_copies_and_noise_are_found(ranked: Path, planted: Path) -> None:
    rows = {Path(row["path"]).stem: row for row in rows_of(ranked)}
    groups = {name: row["duplicate_group"] for name, row in rows.items()}
    found = [
        number
        for number in range(COPIES)
        if groups[f"copy_{number}"] is not None and groups[f"copy_{number}"] == groups[f"photo_{number * 7:02d}"]
    ]
    assert len(found) == COPIES
    originals = {f"photo_{number * 7:02d}" for number in range(COPIES)}
    wrong = [name for name, group in groups.items() if group and name.startswith(("photo", "noise"))]
    assert set(wrong) == originals
    strangest = sorted(rows, key=lambda name: -rows[name]["outlier"])
    places = sorted(strangest.index(f"noise_{number}") + 1 for number in range(NOISE))
    assert places[2] <= 8, places  # of 103, by a model of 12 steps on other images
    assert places[3] <= 16, places
    summary = json.loads((ranked / "summary.json").read_text())
    assert summary["duplicates"] == {"pairs": COPIES, "groups": COPIES, "images": 2 * COPIES}
    names = {"README.md", "summary.json", "settings.json", "ranks.parquet", *summary["sheets"]}
    assert {path.name for path in ranked.iterdir()} == names
    assert {"hardest.png", "easiest.png", "harder_than_predicted.png", "strangest.png", "duplicates.png"} < names
    for name in summary["sheets"]:
        with Image.open(ranked / name) as sheet:
            assert min(sheet.size) > 300


def test_loss_gap_and_rank_are_those_of_a_slow_computation(ranked: Path, run: Path) -> None:
    rows = rows_of(ranked)
    chosen = rows[11]
    student, teacher = load_pair(run)
    pixels = torch.from_numpy(np.asarray(Image.open(chosen["path"]).resize((32, 32), Image.Resampling.BICUBIC)).copy())
    images = student.normalize(pixels.permute(2, 0, 1)[None])
    sums, times = np.zeros(64), np.zeros(64)
    with torch.no_grad():
        for mask in fixed_masks(torch.zeros(1, dtype=torch.int64), (8, 8), 48, 4, seed=0):
            prediction = student.reconstruct(student.encode(images, mask), mask)[0]
            for patch, predicted in zip(mask[0].nonzero().flatten().tolist(), prediction, strict=True):
                sums[patch] += float((predicted - student.target(images)[0, patch]).square().mean())
                times[patch] += 1
        assert times.min() == times.max() == 3
        assert chosen["loss"] == pytest.approx((sums / times).mean(), abs=1e-6)
        assert chosen["difficulty"] == pytest.approx(float(teacher.predict_loss(images).mean()), abs=1e-6)
    losses, difficulties = ([row[name] for row in rows] for name in ("loss", "difficulty"))
    below = [sum(other < own[11] for other in own) / (len(rows) - 1) for own in (losses, difficulties)]
    assert chosen["gap"] == pytest.approx(below[0] - below[1], abs=1e-12)
    assert [row["rank"] for row in sorted(rows, key=lambda row: -row["loss"])] == list(range(1, len(rows) + 1))
    by_path = {row["path"]: row for row in rows}
    assert all(by_path[row["nearest"]] is not row and row["similarity"] <= 1 + 1e-6 for row in rows)


def test_a_killed_call_goes_on_to_the_same_bytes(ranked: Path, run: Path, planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["rank", str(run), str(planted), "--out", str(out), "--batch_size", "1", *MACHINE]
    process = subprocess.Popen([sys.executable, "-m", "hardpatch", *command], stderr=subprocess.DEVNULL)
    while not (out / "parts" / "000000.parquet").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "ranks.parquet").exists()
    first = (out / "parts" / "000000.parquet").stat().st_mtime_ns
    kept = [path.name for path in sorted((out / "parts").glob("[0-9]*"))]
    done: list[int] = []
    hardpatch.rank(
        run, str(planted), out, batch_size=1, workers=0, device="cpu", progress=lambda n, total: done.append(n)
    )
    assert done[0] == 32 * len(kept) < done[-1] == PHOTOS + COPIES + NOISE
    assert first
    for name in ("ranks.parquet", "README.md", "strangest.png"):
        assert (out / name).read_bytes() == (ranked / name).read_bytes()
    assert not (out / "parts").exists()


def test_an_encoder_alone_a_model_without_predictor_and_bad_files(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    name = os.fsdecode(b"<b>\"q'\x1b[31m\n\xe9.png")
    (tmp_path / "set").mkdir()
    for k, path in enumerate(sorted(images.rglob("*.jpg"))[:5]):
        Image.open(path).save(tmp_path / "set" / (name if k == 0 else f"{k}.png"))
    (tmp_path / "set" / "broken.png").write_bytes(b"junk")
    weights = tmp_path / "vit.safetensors"
    from safetensors.torch import save_file

    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, patch_size=8)
    save_file(vit.state_dict(), weights)
    command = ["rank", str(tmp_path / "set"), "--run", str(weights), "--heads", "3", *MACHINE]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "RUN has an encoder only: no difficulty, no loss" in said.out
    assert "images: 5, left out: 1" in said.out
    assert "broken.png" in said.err
    rows = rows_of(tmp_path / "out")
    assert list(rows[0]) == ["path", "index", "rank", "nearest", "similarity", "outlier", "duplicate_group"]
    assert any("<b>\"q'\\x1b[31m\\n\\xe9.png" in row["path"] for row in rows)
    assert "\x1b" not in said.out + said.err
    assert main([*command, "--max_bad_fraction", "0.1", "--out", str(tmp_path / "strict")]) == 2
    assert "raise --max_bad_fraction" in capsys.readouterr().err


def test_mistakes(complaint: Complaint, run: Path, planted: Path, ranked: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", *MACHINE)
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("x")
    table = [
        (("rank", run, *out), "expected RUN and IMAGES, got one path"),
        (("rank", run, planted, *MACHINE), "--out"),
        (("rank", run, tmp_path / "no", *out), "no such file or folder"),
        (("rank", tmp_path / "no", planted, *out), "RUN"),
        (("rank", run, planted, *out, "--draws", "0"), "--draws: expected a whole number from 1"),
        (("rank", run, planted, *out, "--draws", "1"), "draws: expected at least 2"),
        (("rank", run, planted, *out, "--mask_ratio", "1"), "--mask_ratio"),
        (("rank", run, planted, "--out", used, *MACHINE), f"{used} holds mine.txt"),
        (("rank", run, planted, "--out", ranked, *MACHINE), "has a summary.json"),
        (("rank", run, planted, *out, "--pictures", "3"), "unrecognized arguments: --pictures"),
    ]
    for arguments, message in table:
        assert message in complaint(*arguments), arguments
    assert not (tmp_path / "out").exists()
    (tmp_path / "begun").mkdir()
    settings = json.loads((ranked / "settings.json").read_text())
    (tmp_path / "begun" / "settings.json").write_text(json.dumps(settings | {"draws": 5}))
    line = complaint("rank", run, planted, "--out", tmp_path / "begun", "--batch_size", "1", *MACHINE)
    assert "was begun with draws 5, and this is 4" in line
