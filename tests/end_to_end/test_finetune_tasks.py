"""hardpatch finetune on rendered sets: several labels, numbers, frozen parts, other sizes, early stopping."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from hardpatch.cli import main
from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import open_source
from hardpatch.finetune.file import load_classifier
from hardpatch.interchange.finetuned import BEST
from hardpatch.train.checkpoint import checkpoints, newest, read_metadata
from hardpatch.train.metrics import read_metrics
from tests.finetune.rendered import write_csv, write_disks

Fails = Callable[..., str]

BRIEF = [
    *("--preset", "tiny", "--batch_size", "20", "--epochs", "25", "--warmup_epochs", "2", "--lr", "2e-3"),
    *("--randaugment", "0", "--crop_scale", "1", "1", "--crop_ratio", "1", "1", "--layer_decay", "1"),
    *("--drop_path", "0", "--val_every", "5", "--log_every", "10", "--workers", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Render 300 images to learn from and 150 to evaluate on."""
    root = tmp_path_factory.mktemp("disks")
    return {
        name: write_csv(root / name / "set.csv", write_disks(root / name, count, seed))
        for name, count, seed in (("train", 300, 1), ("val", 150, 2))
    }


def run_on(run: Path, disks: dict[str, Path], out: Path, *options: object, val: bool = True) -> dict[str, Any]:
    sets = ["--train", str(disks["train"]), *(["--val", str(disks["val"])] if val else [])]
    assert main(["finetune", str(run), *sets, "--out", str(out), *BRIEF, *map(str, options)]) == 0
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


def test_labels_are_learned(
    run: Path, disks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_on(run, disks, tmp_path / "run", "--task", "multilabel", "--label_column", "tags")
    said = capsys.readouterr()
    assert result["chance_map"] < 0.6
    assert result["map"] > result["chance_map"] + 0.25
    assert [row["name"] for row in result["per_class"]] == ["blue", "green", "red"]
    assert "mixup, CutMix, label smoothing and the probe of the preset auto are off" in said.err
    assert f"mAP {result['map']:.2%}" in said.out
    metadata = read_metadata(newest(tmp_path / "run") / "model.safetensors") or {}  # type: ignore[operator]
    assert (metadata["task"], metadata["target_names"]) == ("multilabel", ["blue", "green", "red"])
    # what predict writes has the average precision of the run
    predicted = tmp_path / "labels.parquet"
    assert main(["predict", str(tmp_path / "run"), str(disks["val"]), "--out", str(predicted), "--pictures", "2"]) == 0
    table = pq.read_table(predicted).to_pydict()
    tags = [line.split(",")[1] for line in disks["val"].read_text().splitlines()[1:]]
    precisions = [
        average_precision_score([name in tag.split(";") for tag in tags], table[name])
        for name in ("blue", "green", "red")
    ]
    assert sum(precisions) / 3 == pytest.approx(result["map"], abs=1e-4)
    assert all(0 <= value <= 1 for name in ("blue", "green", "red") for value in table[name])


def test_numbers_are_learned_in_their_units(run: Path, disks: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_on(run, disks, out, "--task", "regression", "--target_columns", "area", "--image_size", "32", "40")
    (area,) = result["per_target"]
    assert area["r2"] > 0.5  # the mean of the set gives 0
    values = [float(line.split(",")[5]) for line in disks["val"].read_text().splitlines()[1:]]
    assert area["mae"] < 0.7 * sum(abs(v - sum(values) / len(values)) for v in values) / len(values)
    metadata = read_metadata(newest(out) / "model.safetensors") or {}  # type: ignore[operator]
    train = torch.tensor([float(line.split(",")[5]) for line in disks["train"].read_text().splitlines()[1:]])
    assert metadata["target_mean"] == pytest.approx([train.mean().item()])
    assert metadata["target_std"] == pytest.approx([train.std(correction=0).item()])
    assert metadata["image_size"] == [32, 40]
    assert main(["predict", str(out), str(disks["val"]), "--out", str(tmp_path / "areas.csv")]) == 0
    lines = (tmp_path / "areas.csv").read_text().splitlines()
    assert lines[0] == "path,area"
    errors = [abs(float(line.split(",")[1]) - value) for line, value in zip(lines[1:], values, strict=True)]
    assert sum(errors) / len(errors) == pytest.approx(area["mae"], rel=1e-3)
    model, names, size = load_classifier(out)
    assert (names, size) == (("area",), (32, 40))
    source = open_source(disks["val"])
    images = torch.stack([EvalTransform(size)(source.image(k)) for k in range(len(source))])
    with torch.inference_mode():
        predicted = model(model.normalize(images))[:, 0]
    assert (predicted - torch.tensor(values)).abs().mean().item() == pytest.approx(area["mae"], rel=1e-4)


def test_early_stopping_resumes_to_the_same_bits(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(out: Path, *options: str) -> list[str]:
        data = ["--train", str(images), "--out", str(out), *BRIEF, "--batch_size", "6", "--val_every", "1"]
        return ["finetune", str(run), *data, "--patience", "3", "--sampling", "balanced", *options]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(whole)) == 0
    said = capsys.readouterr()
    assert "no --val: 6 of the 30 images of --train are held out to evaluate on" in said.err
    result = json.loads((whole / "result.json").read_text())
    rows = [row for row in read_metrics(whole / "metrics.jsonl") if "top1" in row]
    best = max(rows, key=lambda row: row["top1"])
    assert result["steps"] == rows[-1]["step"] < result["best_weights"]["planned_steps"] == 100
    assert (len(rows) - 1) - rows.index(best) == 3
    assert result["best_weights"]["step"] == best["step"]
    assert result["top1"] == best["top1"] == result["best_top1"]
    kept, loaded = load_file(whole / BEST), load_classifier(whole).model.state_dict()
    assert all(torch.equal(kept[f"student.{name}"], value) for name, value in loaded.items())

    # as if it had been killed after an evaluation in the middle
    assert main(command(killed, "--keep_checkpoints", "100")) == 0
    for path in checkpoints(killed / "checkpoints")[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (killed / "result.json").unlink()
    assert main(["finetune", "--resume", "--out", str(killed)]) == 0
    again = json.loads((killed / "result.json").read_text())
    assert (again["steps"], again["best_weights"]) == (result["steps"], result["best_weights"])
    for name, value in load_file(killed / BEST).items():
        assert torch.equal(value, kept[name])


def test_frozen_blocks(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--train", str(images), "--val", str(images), "--out", str(tmp_path / "run")]
    assert main(["finetune", str(run), *data, *BRIEF, "--freeze", "1", "--epochs", "3"]) == 0
    assert "--freeze: " in capsys.readouterr().err
    before = load_file(
        next(iter(sorted((run / "checkpoints").glob("step_*")))).parent / "step_00000012/model.safetensors"
    )
    after = load_file(newest(tmp_path / "run") / "model.safetensors")  # type: ignore[operator]
    same = {
        name
        for name in after
        if f"student.host.{name[8:]}" in before and torch.equal(after[name], before[f"student.host.{name[8:]}"])
    }
    assert any("blocks.0." in name for name in same)
    assert all("blocks.0." in name or "patch_embed" in name or "cls_token" in name for name in same)


MISTAKES = [
    (["--freeze", "99"], "--freeze: expected encoder, or a number of blocks from 0 to 2, got 99"),
    (["--freeze", "all"], "expected a whole number from 0, or encoder, got all"),
    (["--class_weights", "crow=2"], "--class_weights: the training set has no class 'crow'"),
    (["--image_size", "30"], "--image_size: "),
    (["--image_size", "32", "32", "32"], "expected a side, or height and width, got 32 32 32"),
    (["--task", "regression"], "--train: expected targets in columns of a Parquet or CSV file"),
    (["--task", "multilabel", "--mixup", "0.5"], "--mixup: expected with --task classes only"),
    (["--task", "multilabel", "--sampling", "balanced"], "--sampling: expected natural"),
    (["--target_columns", "area"], "--target_columns: expected with --task multilabel or regression"),
    (["--patience", "0"], "expected a whole number from 1"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(run: Path, images: Path, tmp_path: Path, fails: Fails, options: list[str], message: str) -> None:
    out = tmp_path / "run"
    line = fails("finetune", run, "--train", images, "--val", images, "--out", out, *BRIEF, *options)
    assert message in line
    assert not out.exists()


def test_columns_that_hold_no_targets(run: Path, disks: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    data = ["--train", disks["train"], "--val", disks["val"], "--out", tmp_path / "run", *BRIEF]
    line = fails("finetune", run, *data, "--task", "regression", "--target_columns", "tags")
    assert "column 'tags': expected a finite number, got" in line
    line = fails("finetune", run, *data, "--task", "multilabel", "--target_columns", "red", "area")
    assert "column 'area': expected 0 or 1, got" in line
