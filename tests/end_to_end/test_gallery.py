"""The paper's figures as galleries, and the true loss of runs without loss predictor, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from safetensors.torch import load_file

from hardpatch.cli import main
from hardpatch.measure.score_files import NO_PREDICTOR
from hardpatch.study.gallery_result import FIGURES, NO_PREDICTED_LOSS
from tests.end_to_end.conftest import SMALL

Fails = Callable[..., str]
LOCAL = ("--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Pre-train a plain MAE for 6 steps."""
    folder = tmp_path_factory.mktemp("runs") / "mae"
    command = ["pretrain", *SMALL, "--method.predicting_loss", "none", "--method.alpha_start", "0"]
    assert main([*command, "--method.alpha_end", "0", "--data", str(images), "--steps", "6", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Write a mask of the bright bar in each image."""
    folder = tmp_path_factory.mktemp("masks")
    for path in images.glob("*/*.jpg"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        with Image.open(path) as image:
            mask = image.convert("L").point(lambda value: 255 * (value > 120))
            mask.save(folder / path.parent.name / f"{path.stem}.png")
    return folder


def draw(figure: str, *arguments: object) -> int:
    return main(["study", figure, *map(str, arguments), *LOCAL])


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "result.json").read_text())
    return content


def test_the_numbers_are_those_of_score(
    run: Path, images: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, json_file = tmp_path / "fig2", tmp_path / "numbers.json"
    arguments = [run, images, "--masks", masks, "--count", 30, "--columns", 2]
    assert draw("fig2", *arguments, "--out", out, "--json", json_file) == 0
    printed = capsys.readouterr().out
    assert "images: 30 of 30 shown, left out: 0" in printed
    scores = tmp_path / "scores"
    assert main(["score", str(run), str(images), "--masks", str(masks), "--out", str(scores), *LOCAL]) == 0
    scored = capsys.readouterr().out.splitlines()
    for line in scored[1:3]:  # rank correlation and ROC areas
        assert line in printed
    content, table = read(out), pq.read_table(scores / "scores.parquet").to_pylist()
    assert json.loads(json_file.read_text()) == content
    assert len(content["scores"]) == len(table) == 30
    for row, scored_row in zip(content["scores"], table, strict=True):
        assert row == {name: scored_row[name] for name in row}
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "fig2_1.png", "fig2_2.png", "result.json"]
    assert imread(out / "fig2_1.png").shape[1] > 1000
    readme = (out / "README.md").read_text()
    assert f"hardpatch study fig2 {run}" in readme
    assert "**(d) hardest 75% masked**" in readme


@pytest.mark.parametrize("figure", ["fig4", "figS1", "figS2"])
def test_pairs_on_the_embedded_set(figure: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / figure
    assert draw(figure, run, "demo:test", "--count", 3, "--seed", 5, "--out", out) == 0
    assert "images: 3 of 1000 shown" in capsys.readouterr().out
    content = read(out)
    assert content["verb"] == f"study {figure}"
    for name in ("auc", "true_loss_auc", "spearman"):  # the embedded set has masks
        assert content["mean"][name] == pytest.approx(np.mean([row[name] for row in content["scores"]]))
    assert f"The paper's {FIGURES[figure].name} shows {FIGURES[figure].shows}" in (out / "README.md").read_text()
    assert (out / f"{figure}.png").is_file()


def test_a_plain_mae(
    plain: Path, run: Path, images: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores"
    score = ["score", str(plain), str(images), "--masks", str(masks), "--out", str(scores), *LOCAL]
    assert main([*score, "--json", str(tmp_path / "score.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1] == NO_PREDICTOR
    table = pq.read_table(scores / "scores.parquet")
    areas = table["true_loss_auc"].to_pylist()
    assert f"of the true loss against the object masks: {np.mean(areas):.3f}\n" in printed
    assert table.column_names == ["path", "mean_true_loss", "true_loss_auc", "true_loss", "rows", "columns"]
    assert json.loads((tmp_path / "score.json").read_text())["note"] == NO_PREDICTOR
    assert NO_PREDICTOR in (scores / "README.md").read_text()

    alone, pair, other = tmp_path / "alone", tmp_path / "pair", tmp_path / "other"
    arguments = [images, "--masks", masks, "--count", 30]
    assert draw("fig2", plain, *arguments, "--out", alone) == 0
    assert NO_PREDICTED_LOSS in capsys.readouterr().out
    assert [row["true_loss_auc"] for row in read(alone)["scores"]] == areas
    # The true loss of the plain MAE beside the predicted loss of the other run.
    assert draw("fig2", plain, *arguments, "--predictor", run, "--out", pair) == 0
    assert draw("fig2", run, *arguments, "--out", other) == 0
    assert [row["true_loss_auc"] for row in read(pair)["scores"]] == areas
    assert [row["auc"] for row in read(pair)["scores"]] == [row["auc"] for row in read(other)["scores"]]
    assert read(pair)["predictor"] == str(run)


def test_a_reference_checkpoint_of_mae(golden_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(golden_folder / "mae_tiny.safetensors")
    checkpoint = tmp_path / "mae.pth"
    torch.save({"model": {key[6:]: value for key, value in state.items() if key.startswith("model.")}}, checkpoint)
    means = []
    for number, options in enumerate(([], ["--normalize_pixels"])):
        out = tmp_path / str(number)
        assert draw("fig2", checkpoint, "demo:test", "--count", 2, "--out", out, *options) == 0
        printed = capsys.readouterr()
        assert NO_PREDICTED_LOSS in printed.out
        assert ("does not say whether its targets were normalized" in printed.err) == (not options)
        means.append([row["mean_true_loss"] for row in read(out)["scores"]])
    assert means[0] != means[1]


def test_mistakes(fails: Fails, run: Path, plain: Path, images: Path, tmp_path: Path) -> None:
    out, figure = tmp_path / "out", ("--out", tmp_path / "out", *LOCAL)
    assert "RUN: fig4 shows predicted losses" in fails("study", "fig4", plain, images, *figure)
    assert f"{plain} has none" in fails("study", "fig2", run, images, "--predictor", plain, *figure)
    assert "--predictor" in fails("study", "fig4", run, images, "--predictor", run, *figure)
    assert "--predict: expected a run with a loss pred" in fails(
        "study", "fig2", plain, images, "--predict", "whole", *figure
    )
    assert "--predict: expected a run with" in fails("score", plain, images, "--predict", "masked", *figure)
    assert "--normalize_pixels: expected a reference" in fails(
        "study", "fig2", run, images, "--normalize_pixels", *figure
    )
    assert "--count" in fails("study", "fig2", run, images, "--count", 0, *figure)
    assert "--out" in fails("study", "fig2", run, images)
    assert "--colums" in fails("study", "fig2", run, images, "--colums", 2, *figure)
    assert "missing: no such file" in fails("study", "fig2", run, tmp_path / "missing", *figure)
    assert "RUN: " in fails("study", "fig2", tmp_path / "missing", images, *figure)
    assert not out.exists()
    (tmp_path / "taken").write_text("")
    assert "is a file" in fails("study", "fig2", run, images, "--out", tmp_path / "taken")


def test_a_predictor_with_other_patches(fails: Fails, run: Path, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    settings = [*SMALL, "--model.patch_size", "8", "--data", str(images), "--steps", "1", "--out", str(other)]
    assert main(["pretrain", *settings]) == 0
    message = fails("study", "fig2", run, images, "--predictor", other, "--out", tmp_path / "out", *LOCAL)
    assert "like those of RUN, 3 channels, 32x32 px, patches of 4 px; got 3 channels, 32x32 px, patches of 8" in message


def test_photographs_with_masks(run: Path, shared: Path, tmp_path: Path) -> None:
    photographs = shared / "data" / "ecssd200"
    arguments = [photographs / "images", "--masks", photographs / "masks", "--out", tmp_path / "out"]
    assert draw("fig2", run, *arguments) == 0
    content = read(tmp_path / "out")
    assert content["images"] == {"shown": 12, "given": 200}
    assert 0 < content["mean"]["auc"] < 1
