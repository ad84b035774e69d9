"""Checks during pre-training: they change nothing, look at held-out images, and stop mining by a wrong map."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hardpatch
from hardpatch.cli import main
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source, hold_out, open_source
from hardpatch.measure.labels import eval_transform
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import PICTURES, SMALL, write_images

CHECKED = ["--verdict.images", "5", "--data.hold_out", "10"]
EVERY_16 = ["--steps", "80", "--verdict.checks", "5", *CHECKED]  # 80 steps of 16 images: four checks, and step 2


def pretrain(images: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    assert main(["pretrain", *SMALL, "--data", str(images), "--out", str(out), *more]) == 0
    return read_metrics(out / "metrics.jsonl")


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


@pytest.mark.parametrize("more", [[], ["--fast.remember", "true"], ["--method.predicting_loss", "none"]])
def test_checks_change_no_weight(more: list[str], images: Path, tmp_path: Path) -> None:
    common = ["--steps", "30", "--data.hold_out", "10", "--verdict.images", "5", "--model.drop_path", "0.2", *more]
    checked = pretrain(images, tmp_path / "with", *common)
    plain = pretrain(images, tmp_path / "without", *common, "--verdict.checks", "0")
    assert [row["step"] for row in checked if "check_loss" in row] == [0, 15, 30]
    assert not any("check_loss" in row for row in plain)
    expected = weights(tmp_path / "without", 30)
    for name, tensor in weights(tmp_path / "with", 30).items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((tmp_path / "without" / "result.json").read_text())["verdict"] is None


def test_held_out_images_are_not_trained_on(images: Path, tmp_path: Path) -> None:
    source = open_source(str(images))
    others, held = hold_out(source, 10)
    assert held is not None
    names = [{part.name(i) for i in range(len(part))} for part in (others, held)]
    assert (len(names[0]), len(names[1])) == (20, 10)
    assert names[0] | names[1] == {source.name(i) for i in range(30)}
    copied = tmp_path / "images"
    for name in names[0]:
        path = Path(name)
        (copied / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied / path.parent.name / path.name)
    rows = pretrain(images, tmp_path / "run", "--epochs", "4", "--data.hold_out", "10", "--verdict.images", "10")
    assert rows[-1]["step"] == 5  # 4 epochs of 20 images in batches of 16
    pretrain(copied, tmp_path / "copy", "--epochs", "4", "--verdict.checks", "0")
    expected = weights(tmp_path / "copy", 5)
    for name, tensor in weights(tmp_path / "run", 5).items():
        assert torch.equal(tensor, expected[name]), name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == {"train": 20, "held_out": 10}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "10 images are held out and 20 trained on; checks look at 10 and 5 of them" in log
    assert "which classify 30 images, each half by the other (10 are held out)" in log


def test_each_half_of_the_labeled_images_classifies_the_other(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    for number in range(0, 15, 2):  # labels that pixels do not tell
        (folder / "class_0" / f"{number}.jpg").rename(folder / "class_1" / f"moved_{number}.jpg")
    rows = pretrain(folder, tmp_path / "run", "--steps", "1", "--data.hold_out", "10", "--verdict.images", "10")
    trained, held = hold_out(open_source(str(folder)), 10)
    assert held is not None
    expected = accuracy_by_halves(tmp_path / "run", trained, held)
    assert 0.5 < expected < 1
    assert rows[-1]["check_knn_top1"] == pytest.approx(expected)
    assert rows[-1]["check_queries"] == 30
    assert rows[-1]["check_chance"] == pytest.approx(23 / 30)


def accuracy_by_halves(run: Path, trained: Source, held: Source) -> float:
    """Classify every image by the 15 others of the other half, slowly: trained ones come first."""
    model, features, labels = hardpatch.load(run), [], []
    for source in (trained, held):
        transform = eval_transform(model, None)
        for batch in eval_batches(source, transform, batch_size=1, workers=0):
            with torch.inference_mode():
                features.append(model.encode(model.normalize(batch.images))[0, 1:].mean(0))
            labels.append(int(batch.labels[0]))
    right = 0
    for i, (query, label) in enumerate(zip(features, labels, strict=True)):
        votes = [0.0] * 2
        for j, (other, of_other) in enumerate(zip(features, labels, strict=True)):
            if (i - j) % 2:
                votes[of_other] += math.exp(torch.cosine_similarity(query, other, dim=0) / 0.07)
        right += votes.index(max(votes)) == label
    return right / len(features)


def test_the_result_is_a_verdict_and_an_encoder(images: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "model.width": 32, "model.depth": 2, "batch_size": 16, "data.workers": 0}
    run = hardpatch.pretrain("demo", data=str(images), out=tmp_path / "run", **settings)
    assert run.verdict is not None
    assert run.verdict.to_dict() == json.loads((tmp_path / "run" / "result.json").read_text())["verdict"]
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    model = hardpatch.load(tmp_path / "run")
    expected = model.encode(model.normalize(pixels))[:, 1:].mean(1)
    torch.testing.assert_close(run.encoder(pixels), expected)
    torch.testing.assert_close(run.encoder(pixels / 255), expected, rtol=1e-4, atol=1e-4)
    assert run.encoder(torch.rand(2, 3, 50, 40)).shape == (2, 32)


def test_mining_stops_and_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upside_down = (2, 20, 40)
    monkeypatch.setattr("hardpatch.pretrain.guard.direction", lambda check: -1 if check["step"] in upside_down else 1)
    # 80 steps of 16 images are enough for four checks of 5 images
    options = ["--train.log_every", "1", *EVERY_16, "--train.checkpoint_steps", "10", "--train.keep_checkpoints", "99"]
    rows = {row["step"]: row for row in pretrain(images, tmp_path / "run", *options)}
    checks = [step for step, row in rows.items() if "check_loss" in row]
    assert checks == [0, 2, 20, 40, 60, 80]
    assert [rows[step]["mining_stopped"] for step in checks] == [0, 0, 1, 1, 1, 1]
    assert all(rows[step]["alpha"] > 0 for step in range(1, 21))
    assert all(rows[step]["alpha"] == 0 for step in range(21, 81))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("mining stops") == 1
    assert "mining goes on" not in log  # that is only worth it before the end
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    for path in (killed / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > 30:  # as if the run had been killed after step 30
            shutil.rmtree(path)
    assert main(["pretrain", "--resume", "--out", str(killed)]) == 0
    resumed = read_metrics(killed / "metrics.jsonl")
    assert [{**row, "images_per_second": 0} for row in resumed] == [
        {**row, "images_per_second": 0} for row in rows.values()
    ]
    expected = weights(tmp_path / "run", 80)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed, 80).items())


def test_a_warning_leaves_mining_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardpatch.pretrain.guard.direction", lambda check: -1)
    rows = pretrain(images, tmp_path / "run", *EVERY_16, "--verdict.upside_down", "warn")
    assert all(row["alpha"] > 0 for row in rows if "alpha" in row)
    assert all(row["mining_stopped"] == 0 for row in rows if "check_loss" in row)
    assert "the patches that are mined are the easy ones" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("verb", ["knn", "linear"])
def test_a_run_that_goes_on_is_measured_by_its_step(
    verb: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, json_file = tmp_path / "run", tmp_path / "result.json"
    pretrain(images, run, "--steps", "4", "--train.checkpoint_steps", "2", "--verdict.checks", "0")
    command = [verb, str(run), "--train", str(images), "--val", str(images), "--no_cache", "--json", str(json_file)]
    assert main(command) == 0
    assert "still running" not in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    assert main([*command, "--random_baseline"]) == 0
    trained, random = capsys.readouterr().out.splitlines()
    assert trained.startswith("student (step 2 of 4, still running or interrupted): ")
    assert random.startswith("random: ")
    values = json.loads(json_file.read_text())
    assert (values["step"], values["steps"]) == (2, 4)


def test_a_plain_host_has_reconstructions(images: Path, tmp_path: Path) -> None:
    pretrain(
        images, tmp_path / "run", "--steps", "2", "--method.predicting_loss", "none", "--verdict.checks", "0", *PICTURES
    )
    folder = tmp_path / "run" / "pictures" / "difficulty"
    with Image.open(folder / "contact_sheet.png") as sheet:
        picture, masked, reconstruction, true_loss = 1, 1, 1, 1.2  # widths of the columns
        assert sheet.width > 230 * (picture + masked + reconstruction + true_loss)
    assert len(list(folder.glob("*-*.png"))) == 8


def test_mistakes(images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    command = ["pretrain", *SMALL, "--data", images, "--out", tmp_path / "run", "--steps", "2"]
    assert "data.hold_out: expected fewer than the 30 images" in fails(*command, "--hold_out", "30")
    assert "data.hold_out: expected a whole number from 0, got -1" in fails(*command, "--hold_out", "-1")
    assert "verdict.images: expected a whole number from 1, got 0" in fails(*command, "--verdict.images", "0")
    assert not (tmp_path / "run").exists()
