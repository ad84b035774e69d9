"""The linear probe that is trained on crops: its settings, its network, and its training against a plain loop."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardpatch.data.augment import TrainTransform
from hardpatch.data.loader import train_batches
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.finetune import model as network
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.run import train_linear_probe
from hardpatch.finetune.settings import PROBES, FinetuneSettings, check
from hardpatch.finetune.trainer import FinetuneJob
from hardpatch.models.encoder import Encoder
from hardpatch.pretrain.run import pretrain
from hardpatch.train.device import start_fabric
from hardpatch.train.settings import changed
from tests.end_to_end.conftest import write_images

IMAGENET = 1_281_167
IMAGES = 40


def small_probe(classes: int = 10, pool: str = "mean") -> Classifier:
    """Build a probe on three blocks of 32, for images of 16 x 24 pixels in patches of 4."""
    torch.manual_seed(0)
    encoder = Encoder(image_size=(16, 24), patch_size=4, width=32, depth=3, heads=2, drop_path=0.5)
    nn.init.normal_(encoder.norm.weight, mean=1.0)  # so that the norm of pre-training shows
    return Classifier(encoder, classes, mean=(0.5,) * 3, std=(0.25,) * 3, frozen=True, pool=pool)  # type: ignore[arg-type]


def small_job(folder: Path, **settings: object) -> FinetuneJob:
    """Build a job on some images of the embedded set, of 10 classes; 5 steps are an epoch."""
    run = changed(PROBES["paper"], {"batch_size": 8, "epochs": 6.0, "warmup_epochs": 2.0, "workers": 0, **settings})
    source = Subset(open_source("demo:train"), list(range(0, 10 * IMAGES, 10)))
    assert source.classes is not None
    fabric = start_fabric("cpu", "fp32", "--")
    return FinetuneJob(run, folder, source, source, source.classes, torch.arange(10), small_probe(), fabric)


def test_settings_are_those_of_table_s3() -> None:
    run = PROBES["paper"]
    assert (run.optimizer, run.base_lr, run.weight_decay, run.betas[0]) == ("sgd", 1e-3, 0.0, 0.9)
    assert (run.batch_size, run.warmup_epochs, run.epochs, run.min_lr) == (4096, 10.0, 100.0, 0.0)
    assert run.peak_lr == pytest.approx(0.016)  # 1e-3 * 4096 / 256
    assert run.total_steps(IMAGENET) == 31278  # 100 * 1281167 / 4096
    assert (run.frozen, run.pool, run.clip, run.ema, run.weights) == (True, "mean", None, None, "auto")
    assert (run.crop_scale, run.crop_ratio, run.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert not any((run.mixup, run.cutmix, run.smoothing, run.drop_path, run.randaugment, run.erase))
    check(run, IMAGENET)


def test_a_rate_that_is_too_low_for_the_set_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images", each=5)
    small: dict[str, Any] = {"model.width": 32, "model.depth": 1, "model.heads": 2, "data.workers": 0}
    pretrain("demo", data=str(images), out=tmp_path / "run", steps=1, batch_size=4, **small)
    monkeypatch.setattr("hardpatch.finetune.run.fit", lambda job, progress, after: job.save() or 0)
    settings: dict[str, Any] = {"epochs": 100.0, "batch_size": 4, "workers": 0, "device": "cpu"}
    for base_lr, said in ((1e-3, ["--base_lr 128"]), (100.0, [])):
        out = tmp_path / str(base_lr)
        train_linear_probe(tmp_path / "run", images, images, out, base_lr=base_lr, **settings)
        lines = [line for line in (out / "log.txt").read_text().splitlines() if "learning rate times steps" in line]
        assert [line.rpartition("with ")[2] for line in lines] == said  # 500 * 256 / (100 epochs of 10 images)


def test_learning_rates_by_hand(tmp_path: Path) -> None:
    job = small_job(tmp_path, batch_size=8, base_lr=0.032)  # peak 0.001; 30 steps, 10 of them warm-up
    assert job.total == 30
    expected = {0: 0.0, 5: 5e-4, 10: 1e-3, 20: 5e-4, 30: 0.0}
    assert {step: job._learning_rate(step) for step in expected} == pytest.approx(expected, abs=1e-12)
    optimizer = job.state.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(job.model.head.weight), id(job.model.head.bias)}
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0}
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.9, 0.0)}


def test_first_weights() -> None:
    model = small_probe(classes=2000)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.head.bias.any()
    assert isinstance(model.fc_norm, nn.BatchNorm1d)
    assert (model.fc_norm.affine, model.fc_norm.eps) == (False, 1e-6)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_the_network_by_hand(pool: str) -> None:
    model, images = small_probe(pool=pool), torch.randn(6, 3, 16, 24)
    assert not model.encoder.training
    tokens = model.encoder(images)  # after the norm of pre-training
    features = tokens[:, 1:].sum(dim=1) / 24 if pool == "mean" else tokens[:, 0]
    torch.testing.assert_close(model.features(images), features)
    mean, variance = features.mean(dim=0), features.var(dim=0, unbiased=False)
    scores = (features - mean) / (variance + 1e-6).sqrt() @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), scores)
    norm = model.fc_norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # statistics of the one batch, with a momentum of 0.1 from mean 0 and variance 1
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * features.var(dim=0, unbiased=True))
    expected = (features - norm.running_mean) / (norm.running_var + 1e-6).sqrt() @ model.head.weight.T
    torch.testing.assert_close(model.eval()(images), expected + model.head.bias)


def test_the_encoder_sees_parts_and_the_norm_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, mask = torch.randn(7, 3, 16, 24), torch.zeros(7, 24, dtype=torch.bool)
    mask[:, 5:] = True
    whole, seen = small_probe(), []
    parts = copy.deepcopy(whole)
    expected = whole(images), whole.features(images, mask)
    monkeypatch.setattr(network, "FROZEN_BATCH", 3)
    parts.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch.testing.assert_close(parts(images), expected[0])
    torch.testing.assert_close(parts.features(images, mask), expected[1])
    torch.testing.assert_close(parts.fc_norm.state_dict(), whole.fc_norm.state_dict())
    assert seen == [3, 3, 1] * 2


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    """Compare with torch's layers and optimizer, and the schedule of MAE's lr_sched.py."""
    job = small_job(tmp_path, lr=0.2)
    encoder = copy.deepcopy(job.model.encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    layer = copy.deepcopy(job.model.head)
    norm = nn.BatchNorm1d(32, affine=False, eps=1e-6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    transform = TrainTransform((16, 24), Reading(3), (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    plain = train_batches(job.source, transform, batch_size=8, seed=0, start=0, workers=0, pin_memory=False)
    batches = job.batches()
    for step in range(job.total):
        job.train_step(next(batches))
        batch = next(plain)
        epoch = step / 5
        lr = 0.2 * epoch / 2 if epoch < 2 else 0.2 * 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 4))
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            features = encoder((batch.images / 255 - 0.5) / 0.25)[:, 1:].mean(dim=1)
        optimizer.zero_grad()
        F.cross_entropy(layer(norm(features)), batch.labels).backward()
        optimizer.step()
    batches.close()
    plain.close()
    torch.testing.assert_close(job.model.head.weight, layer.weight)
    torch.testing.assert_close(job.model.head.bias, layer.bias)
    torch.testing.assert_close(job.model.fc_norm.state_dict(), norm.state_dict())
    after = job.model.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    job.evaluate()
    assert job.model.training  # after an evaluation the head is trained on
    assert not job.model.encoder.training


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 1}, "--batch_size: expected 2 or more, to normalize features over the batch, got 1"),
        ({"accumulation_steps": 2}, "--accumulation_steps: expected 1: a frozen encoder needs little memory, got 2"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(changed(PROBES["paper"], values), IMAGENET)


def test_another_optimizer_trains_the_frozen_probe(tmp_path: Path) -> None:
    job = small_job(tmp_path, optimizer="adamw", lr=0.1)
    assert isinstance(job.state.optimizer, torch.optim.AdamW)
    assert FinetuneSettings().optimizer == "adamw"
