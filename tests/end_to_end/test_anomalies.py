"""hardpatch anomalies: rendered defects stand out more than by plain reconstruction errors; bad input is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from hardpatch.cli import main
from hardpatch.data.sources import open_source
from hardpatch.measure.object_masks import find_masks
from hardpatch.rank.normal import normal_losses
from tests.end_to_end.conftest import SMALL
from tests.rank.textures import write_set

Complaint = Callable[..., str]
MACHINE = ("--workers", "0", "--device", "cpu")
STEPS = 300


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render normal textures and defective ones, and train a plain MAE of two blocks on the normal ones."""
    folder = tmp_path_factory.mktemp("textures") / "set"
    write_set(folder, normal=150, good=30, defective=30, seed=0)
    settings = ("--steps", str(STEPS), "--lr", "3e-3", "--method.mask_ratio", "0.5", "--data.crop_scale", "[1.0, 1.0]")
    plain = ("--method.predicting_loss", "none", "--method.alpha_start", "0", "--method.alpha_end", "0")
    command = ["pretrain", *SMALL, *settings, *plain, "--model.width", "48", "--model.heads", "3"]
    assert main([*command, "--data", str(folder / "normal"), "--out", str(folder / "run")]) == 0
    return folder


def test_defects_stand_out(textures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    sets = ["--train", str(textures / "normal"), "--masks", str(textures / "masks")]
    command = ["anomalies", str(textures / "run"), str(textures / "test"), *sets, "--out", str(out), "--pictures", "5"]
    capsys.readouterr()
    assert main([*command, *MACHINE]) == 0
    said = capsys.readouterr()
    assert "masks: 30 of 60 images have none" in said.err
    summary = json.loads((out / "summary.json").read_text())
    pixel, image = summary["areas"]["pixel"], summary["areas"]["image"]
    assert pixel["score"] > pixel["whole"] + 0.05, pixel
    assert pixel["score"] > pixel["masked"] + 0.05, pixel
    assert pixel["score"] > 0.7, pixel
    assert image["score"] > image["whole"], image
    rows = pq.read_table(out / "anomalies.parquet").to_pylist()
    assert len(rows) == 60
    assert sum(row["defect"] for row in rows) == summary["areas"]["defective"] == 30
    area = roc_auc_score([row["defect"] for row in rows], [row["score"] for row in rows])
    assert area == pytest.approx(image["score"], abs=1e-12)
    for row in rows:
        assert row["score"] == pytest.approx(max(row["scores"]), rel=1e-5)
        assert len(row["scores"]) == row["rows"] * row["columns"] == 64
        assert np.median(row["scores"]) == pytest.approx(0, abs=1e-5)
    maps = sorted(path.name for path in (out / "heat_maps").iterdir())
    best = sorted(rows, key=lambda row: -row["score"])[:5]
    assert maps == [f"{place:05d}-{Path(row['path']).stem}.png" for place, row in enumerate(best, 1)]
    with Image.open(out / "heat_maps" / maps[0]) as panels:
        assert panels.size == (3 * 192, 192)
    entries = {"README.md", "anomalies.parquet", "heat_maps", "heat_maps.png", "settings.json", "summary.json"}
    assert {path.name for path in out.iterdir()} == entries
    assert main([*command, *MACHINE]) == 2
    assert "has a summary.json" in capsys.readouterr().err


def test_scores_are_those_of_a_slow_computation() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.gamma(2, size=(n, 6)).astype(np.float32) for n in (5, 3)]
    losses = rng.gamma(2, size=(1, 6)).astype(np.float32)
    whole = np.concatenate(parts).astype(np.float64)
    deviation = [whole[:, k].std() for k in range(6)]
    low = 0.1 * sum(deviation) / 6

    def deviations(image: np.ndarray) -> list[float]:
        return [(image[k] - whole[:, k].mean()) / (deviation[k] + low) for k in range(6)]

    def spread(values: list[float]) -> float:
        return float(np.median([abs(value - np.median(values)) for value in values]))

    usual = sum(spread(deviations(image)) for image in whole) / len(whole)
    found = deviations(losses[0].astype(np.float64))
    expected = [(value - np.median(found)) / (spread(found) + 0.2 * usual) for value in found]
    assert normal_losses(lambda: parts).scores(losses)[0] == pytest.approx(expected, abs=1e-9)


def test_masks_may_be_missing_as_in_mvtec(tmp_path: Path) -> None:
    for name in ("test/good/000.png", "test/cut/000.png", "test/hole/000.png", "masks/cut/000_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    source = open_source(tmp_path / "test")
    names = [Path(source.name(i)).parent.name for i in range(3)]
    assert names == ["cut", "good", "hole"]
    assert find_masks(source, tmp_path / "masks", optional=True) == [tmp_path / "masks/cut/000_mask.png", None, None]
    with pytest.raises(ValueError, match="expected one mask for each image"):
        find_masks(source, tmp_path / "masks")


def test_mistakes(complaint: Complaint, run: Path, images: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", *MACHINE)
    (tmp_path / "masks").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "one" / "a.png")
    train = ("--train", images)
    table = [
        (("anomalies", run, images, *out), "--train"),
        (("anomalies", run, *train, *out), "expected RUN and IMAGES, got one path"),
        (("anomalies", run, images, "--train", tmp_path / "no", *out), f"--train: {tmp_path}/no: no such file"),
        (("anomalies", run, images, "--train", tmp_path / "one", *out), "--train: expected two normal images or more"),
        (("anomalies", run, images, *train, *out, "--masks", tmp_path / "masks"), "has none of them"),
        (("anomalies", run, images, *train, *out, "--pictures", "-1"), "--pictures: expected a whole number from 0"),
        (("anomalies", run, images, *train, *out, "--draws", "1"), "draws: expected at least 2"),
        (("anomalies", tmp_path / "no", images, *train, *out), "RUN"),
    ]
    for arguments, message in table:
        assert message in complaint(*arguments), arguments
    assert not (tmp_path / "out").exists()
