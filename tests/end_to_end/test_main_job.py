"""Pre-train, evaluate and score through the command line, on real files."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import hardpatch
from hardpatch.cli import main
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import PICTURES, SMALL


def test_the_run_folder_explains_itself(run: Path) -> None:
    names = {path.name for path in run.iterdir()} - {"features"}  # the cache of features that other tests write
    assert names == {
        *("README.md", "config.yaml", "environment.json", "metrics.jsonl", "log.txt", "result.json"),
        *("tensorboard", "checkpoints", "pictures", "neighbors.safetensors", "report.html"),
    }
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["steps"] == 12
    assert settings["model"]["width"] == 32
    assert json.loads((run / "environment.json").read_text())["command"].startswith("hardpatch pretrain --recipe demo")
    assert f"hardpatch knn {run}" in (run / "README.md").read_text()
    with Image.open(run / "pictures" / "curves.png") as curves:
        assert min(curves.size) > 300
    assert (run / "pictures" / "difficulty" / "contact_sheet.png").is_file()


def test_the_result_has_the_head_of_all_verbs(run: Path, images: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert list(result)[:8] == ["verb", "run", "data", "images", "classes", "left_out", "seconds", "version"]
    assert (result["verb"], result["run"], result["version"]) == ("pretrain", str(run), hardpatch.__version__)
    assert (result["data"], result["images"]) == ({"train": str(images)}, {"train": 30})
    assert result["left_out"] == {"not images": 0, "undecodable": 0}
    assert result["metrics"] == read_metrics(run / "metrics.jsonl")[-1]
    assert Path(result["weights"]).is_file()
    assert json.loads((run.parent / "result.json").read_text()) == result  # the file of --json


def test_metrics_monitor_the_miner(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 5, 10, 12]  # 0 is the check before the first step
    last = rows[-1]
    assert last["loss"] == pytest.approx(last["reconstruction_loss"] + last["predicting_loss"], rel=1e-4)
    assert last["epoch"] == pytest.approx(12 * 16 / 30)
    assert last["alpha"] == pytest.approx(0.3 + 0.2 * 11 / 12)
    assert 0.0 <= last["pair_accuracy"] <= 1.0
    assert -1.0 <= last["spearman"] <= 1.0
    assert 0.0 <= last["mined_overlap"] <= 1.0
    assert last["mined_loss_ratio"] > 0
    assert last["images_per_second"] > 0
    assert last["gradient_norm"] > 0
    assert rows[1]["reconstruction_loss"] > last["reconstruction_loss"]


@torch.no_grad()
def test_the_weights_file_is_the_model(run: Path) -> None:
    path = run / "checkpoints" / "step_00000012" / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["hardpatch"])
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["data"]["channels"] == "auto"
    written["data"]["channels"] = 3  # what the images have
    assert metadata["config"] == written
    images = torch.rand(2, 3, 32, 32)
    mask = torch.arange(64).lt(48).expand(2, 64)
    for source in (run, path):
        student, teacher = hardpatch.load(source), hardpatch.load(source, "teacher")
        latent = student.encode(images, mask)
        assert latent.shape == (2, 1 + 16, 32)
        assert student.encode(images).shape == (2, 1 + 64, 32)
        assert student.reconstruct(latent, mask).shape == (2, 48, 48)
        assert student.predict_loss(images).shape == teacher.predict_loss(images).shape == (2, 64)
        assert not torch.equal(student.predict_loss(images), teacher.predict_loss(images))


def test_random_weights_are_the_initialization_of_the_run(run: Path, images: Path, tmp_path: Path) -> None:
    # With a learning rate of zero the weights stay as they were initialized.
    folder = tmp_path / "still"
    arguments = [*SMALL, "--data", str(images), "--steps", "1", "--optim.warmup", "1.0", "--out", str(folder)]
    assert main(["pretrain", *arguments]) == 0
    still, initial = hardpatch.load(folder), hardpatch.load(run, "random")
    assert all(map(torch.equal, still.parameters(), initial.parameters()))
    assert not torch.equal(hardpatch.load(run).host.encoder.cls_token, initial.host.encoder.cls_token)


@pytest.mark.parametrize("verb", ["knn", "linear"])
def test_evaluate(verb: str, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers" / "result.json"
    sets = ["--train", str(images), "--val", str(images), "--device", "cpu", "--workers", "0"]
    assert main([verb, str(run), *sets, "--json", str(file), "--random_baseline"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0].startswith("student: ")
    assert printed[1].startswith("random: ")
    result = json.loads(file.read_text())
    assert result["top1"] >= 0.9  # a bright bar left or right
    assert f"top-1 {result['top1']:.2%}" in printed[0]
    assert "top1" in result["random"]


def test_score(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (images / "class_1").glob("*.jpg"):
        with Image.open(path) as image:
            image.convert("L").point(lambda value: 255 * (value > 120)).save(masks / f"{path.stem}.png")
    out = tmp_path / "score"
    arguments = ["score", str(run), str(images / "class_1"), "--out", str(out), "--masks", str(masks)]
    assert main([*arguments, "--pictures", "3", "--draws", "10", "--device", "cpu", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "images: 15, left out: 0" in printed
    assert "area under the ROC curve" in printed
    assert pq.read_table(out / "scores.parquet").num_rows == 15
    assert len(list(out.rglob("*.png"))) == 4  # three images and the sheet


def test_info_and_recipes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "12 of 12 steps (done)" in printed
    assert "32 wide, 2 blocks" in printed
    assert main(["recipes", "imagenet_base_200"]) == 0
    assert "batch_size: 4096" in capsys.readouterr().out


def test_the_embedded_set_needs_no_data_argument(tmp_path: Path) -> None:
    arguments = [setting for setting in SMALL if setting not in ("--recipe", "demo")]
    assert main(["pretrain", *arguments, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["path"] == "demo:train"


@pytest.mark.parametrize("clip", ["5.0", "null"])
def test_a_diverging_run_stops_with_advice_and_keeps_the_last_good_checkpoint(
    clip: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "20", "--out", str(folder)]
    wild = ["--optim.lr", "1e30", "--optim.clip", clip, "--train.checkpoint_steps", "1"]
    assert main([*arguments, *wild]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the loss or a gradient became NaN or infinite in 11 of the last 100 steps" in last
    assert "nothing of them was saved" in last
    assert f"hardpatch pretrain --resume --out {folder} --lr_factor 0.5" in last
    for path in folder.glob("checkpoints/*/model.safetensors"):
        assert all(p.isfinite().all() for p in hardpatch.load(path).parameters())
    assert not list(folder.glob("checkpoints/step_00000020"))


def test_a_run_finishes_even_if_no_pictures_can_be_drawn(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "1", "--out", str(folder)]
    assert main([*arguments, *PICTURES, "--method.mask_ratio", "0.05"]) == 0  # ten draws do not reach every patch
    assert "no pictures of the difficulty: draws" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("loss", ["none", "absolute", "absolute_standardized"])
def test_other_predicting_losses(loss: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--out", str(folder)]
    assert main([*arguments, "--method.predicting_loss", loss, "--method.target", "normalized_pixels"]) == 0
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert ("pair_accuracy" in last) == (loss != "none")
    assert last["alpha"] == pytest.approx(0.0 if loss == "none" else 0.3 + 0.2 / 2)
    assert hardpatch.load(folder).has_predictor == (loss != "none")


def test_gray_images_of_another_shape_and_computed_statistics(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--out", str(folder)]
    shape = [
        "--data.channels",
        "1",
        "--data.image_size",
        "[24, 40]",
        "--data.mean",
        "computed",
        "--data.std",
        "computed",
    ]
    assert main([*arguments, *shape, "--model.patch_size", "8"]) == 0
    model = hardpatch.load(folder)
    assert model.image_size == (24, 40)
    assert model.mean.shape == (1,)
    assert 0.1 < model.mean.item() < 0.6
    assert model.predict_loss(torch.zeros(1, 1, 24, 40)).shape == (1, 15)


def test_micro_batches_give_the_result_of_the_batch(images: Path, tmp_path: Path) -> None:
    weights = []
    for count in ("1", "4"):
        folder = tmp_path / count
        arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "3", "--out", str(folder)]
        assert main([*arguments, "--optim.accumulation_steps", count]) == 0
        weights.append(determined_parameters(hardpatch.load(folder)))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=2e-5)


def determined_parameters(model: hardpatch.HPM) -> dict[str, torch.Tensor]:
    """Return the parameters whose gradient is not 0 in exact arithmetic.

    The others are the bias of the keys, which does not change a softmax, and the bias of the predicted losses, which
    does not change a relative loss. Their gradients are rounding errors, of which Adam makes steps of full size.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("predictor.head.b")}
    del parameters["predictor.norm.bias"]
    for name, bias in parameters.items():
        if name.endswith("qkv.bias"):
            queries, _, values = bias.chunk(3)
            parameters[name] = torch.cat([queries, values])
    return parameters


def test_knn_while_training(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "4", "--out", str(folder)]
    knn = ["--knn.train", str(images), "--knn.val", str(images), "--knn.every_epochs", "1"]
    assert main([*arguments, *knn]) == 0
    rows = read_metrics(folder / "metrics.jsonl")
    # An epoch is 30 / 16 steps: the first ends in the second step, the second in the fourth.
    assert [row["step"] for row in rows if "knn_top1" in row] == [2, 4]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precisions(precision: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--out", str(folder)]
    assert main([*arguments, "--train.precision", precision]) == 0
    assert all(p.dtype == torch.float32 for p in hardpatch.load(folder).parameters())


def test_bad_files_are_named_counted_and_skipped(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "notes.txt").write_text("not an image")
    whole = (folder / "class_0" / "0.jpg").read_bytes()
    (folder / "class_0" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "run"
    assert main(["pretrain", *SMALL, "--data", str(folder), "--steps", "4", "--out", str(out)]) == 0
    log = (out / "log.txt").read_text()
    assert "notes.txt" in log
    assert log.count("0.jpg") == 1


def test_real_images(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = shared / "data", tmp_path / "run"
    small = [*SMALL, "--recipe", "cifar10_tiny", "--model.decoder_depth", "1", "--model.decoder_heads", "2"]
    assert (
        main(["pretrain", *small, "--data", str(data / "cifar10" / "test.parquet"), "--steps", "3", "--out", str(run)])
        == 0
    )
    sets = ["--train", str(data / "caltech100_128" / "train"), "--val", str(data / "caltech100_128" / "test")]
    assert main(["knn", str(run), *sets, "--device", "cpu", "--workers", "0"]) == 0
    images, masks = data / "ecssd200" / "images", data / "ecssd200" / "masks"
    out = tmp_path / "score"
    assert main(["score", str(run), str(images), "--masks", str(masks), "--out", str(out), "--pictures", "2"]) == 0
    printed = capsys.readouterr().out
    assert "images: 200, left out: 0" in printed
    aucs = [auc for auc in pq.read_table(out / "scores.parquet")["auc"].to_pylist() if auc is not None]
    assert len(aucs) > 190
    assert f"object masks: {sum(aucs) / len(aucs):.3f}" in printed
