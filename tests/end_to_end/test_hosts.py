"""Every host, target and mask through the command line, with and without mining."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import hardpatch
from hardpatch.cli import main
from hardpatch.measure.score_files import NO_PREDICTOR
from hardpatch.methods import ibot
from hardpatch.methods.ibot import IBOT
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import KIND, METADATA
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import PICTURES, SMALL

HOSTS: dict[str, list[str]] = {
    "simmim": ["--method.host=simmim", "--method.mask_unit=8", "--method.mask_ratio=0.6", "--model.positions=relative"],
    "beit": ["--method.host=beit", "--method.mask=block", "--method.mask_ratio=0.4", "--model.layer_scale=0.1"],
    "ibot": [
        *("--method.host=ibot", "--method.mask=block", "--method.mask_ratio=0.3", "--method.mask_ratio_spread=0.2"),
        *("--ibot.local_crops=2", "--ibot.local_size=16", "--ibot.outputs=32", "--ibot.head_hidden=32"),
        *("--ibot.head_bottleneck=16", "--method.momentum_schedule=cosine", "--model.drop_path=0.1"),
        "--model.positions=learned",
    ],
}
OTHERS: dict[str, list[str]] = {
    "teacher_features": ["--method.target=teacher"],
    "smooth_l1": ["--method.target=teacher", "--method.reconstruction_loss=smooth_l1"],
    "simmim_of_teacher_features": ["--method.host=simmim", "--method.target=teacher"],
    "inverse_block": ["--method.mask=inverse_block"],
    "uniform": ["--method.mask=grid", "--method.secondary_ratio=0.25"],
    "attention_hint": ["--method.mask=attention_hint"],
    "attmask_without_mining": ["--method.mask=attention_high", "--method.predicting_loss=none"],
    "drop_path": [
        "--seed=9223372036854775807",
        "--model.drop_path=0.2",
        "--data.color_jitter=0.4",
        "--optim.weight_decay_end=0.2",
    ],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tokenizer with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.safetensors"
    sizes = {"patch_size": 4, "vocabulary": 16, "width": 16}
    save_file(DiscreteVAE(**sizes).state_dict(), path, {METADATA: json.dumps({"kind": KIND, **sizes})})
    return path


@pytest.mark.parametrize("predicting_loss", ["none", "relative"])
@pytest.mark.parametrize("host", HOSTS)
def test_hosts(
    host: str, predicting_loss: str, images: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = [*SMALL, *HOSTS[host], "--method.predicting_loss", predicting_loss]
    settings += ["--method.tokenizer", str(tokenizer)] if host == "beit" else []
    settings += PICTURES if predicting_loss == "relative" else []
    assert main(["pretrain", *settings, "--data", str(images), "--steps", "10", "--out", str(run)]) == 0
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert ("pair_accuracy" in last) == ("mined_loss_ratio" in last) == (predicting_loss == "relative")
    assert ("token_entropy" in last) == ("target_entropy" in last) == (host != "simmim")
    assert ("class_loss" in last) == (host == "ibot")
    student = hardpatch.load(run)
    assert student.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 65, 32)
    assert main(["info", str(run)]) == 0
    assert main(["knn", str(run), "--train", str(images), "--val", str(images), "--workers", "0"]) == 0
    scores = ["score", str(run), str(images), "--out", str(tmp_path / "scores"), "--pictures", "1"]
    assert main([*scores, "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert ("Spearman" in printed) == (NO_PREDICTOR not in printed) == (predicting_loss == "relative")
    if predicting_loss == "relative":
        assert (run / "pictures" / "difficulty" / "contact_sheet.png").stat().st_size > 10_000
        teacher = hardpatch.load(run, "teacher")
        assert teacher.predict_loss(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.parametrize("name", OTHERS)
def test_targets_and_masks(name: str, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *SMALL, *OTHERS[name], "--data", str(images), "--steps", "6", "--out", str(run)]) == 0
    assert hardpatch.load(run).encode(torch.zeros(1, 3, 32, 32)).shape == (1, 65, 32)


def test_micro_batches_give_the_losses_of_the_batch_with_ibot(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views of an image stay in one micro-batch.

    The centers, which are updated after each micro-batch, are held fixed, and all global crops are masked.
    """
    monkeypatch.setattr(IBOT, "masked_share", 1.0)
    monkeypatch.setattr(ibot, "CENTER_MOMENTUM", 1.0)
    settings = [*SMALL, *HOSTS["ibot"], "--model.drop_path=0", "--data", str(images), "--steps", "1"]
    for count in ("1", "2"):
        assert main(["pretrain", *settings, "--optim.accumulation_steps", count, "--out", str(tmp_path / count)]) == 0
    one, two = (read_metrics(tmp_path / count / "metrics.jsonl")[-1] for count in ("1", "2"))
    for name in ("class_loss", "reconstruction_loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_ibot_resumes_to_the_same_bits(images: Path, tmp_path: Path) -> None:
    """Centers, mask ratios, drop path and masks guided by attention are all restored."""
    settings = [*SMALL, *HOSTS["ibot"], "--method.mask=attention_hint", "--data", str(images), "--steps", "6"]
    settings += ["--train.checkpoint_steps", "3", "--train.keep_checkpoints", "9"]
    assert main(["pretrain", *settings, "--out", str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000006")
    assert main(["pretrain", *settings, "--out", str(tmp_path / "resumed"), "--resume"]) == 0
    one, two = (tmp_path / name / "checkpoints" / "step_00000006" for name in ("whole", "resumed"))
    for name in ("model.safetensors", "training.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    with safe_open(one / "model.safetensors", "pt") as file:
        assert file.get_tensor("teacher.host.patch_centre").abs().sum() > 0


def test_frozen_features_of_a_file(images: Path, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    settings = ["--method.target=frozen", "--method.frozen=vit_tiny_patch16_224"]
    settings += ["--method.frozen_weights", str(tmp_path / "vit.safetensors"), "--data", str(images), "--steps", "3"]
    assert main(["pretrain", *SMALL, *settings, "--out", str(tmp_path / "run")]) == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["reconstruction_loss"] < 4.0  # between unit vectors
    hardpatch.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--method.host=beit"], "method.tokenizer: host beit predicts visual tokens"),
        (["--method.host=beit", "--method.tokenizer=nowhere.safetensors"], "nowhere.safetensors"),
        (["--method.tokenizer=x"], "method.tokenizer: host mae has no visual tokens; leave it out"),
        (["--method.target=frozen"], "method.frozen: expected a network"),
        (["--method.frozen=dino"], "method.frozen: expected a network with method.target frozen"),
        (["--method.target=frozen", "--method.frozen=vit_tinny_patch16_224"], "did you mean"),
        (["--method.host=ibot", "--method.target=pixels"], "host ibot has its own"),
        (["--method.host=ibot", "--ibot.local_size=18"], "ibot.local_size: expected a multiple"),
        (["--method.mask=grid", "--method.mask_ratio=0.6"], "mask grid leaves one of each four"),
        (["--method.mask_unit=12"], "method.mask_unit: expected a divisor of the image size"),
        (["--method.mask_unit=6"], "method.mask_unit: expected a multiple of the patch size"),
        (["--method.mask=bloc"], "method.mask"),
        (
            ["--method.host=simmim", "--method.secondary_ratio=0.2"],
            "method.secondary_ratio: host simmim has no dropped patches",
        ),
        (["--model.positions=relative"], "model.positions: host mae drops patches"),
        (["--model.positions=learned"], "model.positions: host mae drops patches and needs sincos, got learned"),
        (["--method.mask_ratio_spread=0.3"], "method.mask_ratio_spread"),
        (["--method.mask_unit=16", "--method.mask_ratio=0.9"], "mask_ratio: 0.9 of 4 patches leaves 0 visible"),
    ],
)
def test_settings_that_cannot_be_combined_give_one_line(
    settings: list[str], message: str, fails: Callable[..., str], images: Path, tmp_path: Path
) -> None:
    line = fails("pretrain", *SMALL, *settings, "--data", images, "--steps", "2", "--out", tmp_path / "run")
    assert message in line
    assert not (tmp_path / "run").exists()
