"""Fine-tuning from random weights, without a pre-training run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.finetune.file import load_classifier
from hardpatch.finetune.run import finetune
from hardpatch.finetune.scratch import describe, random_encoder
from hardpatch.finetune.settings import SCRATCH
from hardpatch.pretrain import recipes
from hardpatch.train.checkpoint import newest
from hardpatch.train.run_folder import read_values
from tests.end_to_end.conftest import write_images

BRIEF = {"preset": "paper", "batch_size": 4, "steps": 3, "warmup_epochs": 0.1, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("scratch") / "images", each=6)


def settings(*more: str) -> RunConfig:
    sizes = ["--model.width=32", "--model.depth=2", "--model.heads=2", "--data.image_size=32", "--model.patch_size=8"]
    return config.build(recipes.read("demo"), [*sizes, *more])


def test_the_encoder_is_the_start_of_pre_training(images: Path) -> None:
    run = settings("--seed=3")
    model = initial_model(run)
    encoder, mean, std, _ = random_encoder(run, open_source(images))
    expected = model.host.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    assert (mean, std) == (tuple(model.mean.tolist()), tuple(model.std.tolist()))
    computed = random_encoder(
        replace(run, data=replace(run.data, mean="computed", std="computed")), open_source(images)
    )
    assert computed.mean != mean


def test_a_run_without_weights_to_start_from(images: Path, tmp_path: Path) -> None:
    run, out = settings(), tmp_path / "run"
    result = finetune(run, images, images, out, **BRIEF, layer_decay=0.8)  # type: ignore[arg-type]
    assert result.finished
    values = read_values(out)
    assert values["run"] == describe(run) == result.result["run"]
    assert values["run"].startswith("random weights: 2 blocks of width 32, 2 heads, patches of 8, 32 x 32 px")
    assert {name: values[name] for name in SCRATCH} == SCRATCH
    assert load_classifier(out).model.encoder.width == 32
    resumed = finetune(out=out, resume=True)
    assert (resumed.top1, resumed.step) == (result.top1, 3)
    assert finetune(run, images, images, out, resume=True).top1 == result.top1
    with pytest.raises(UserError, match="run was 'random weights: 2 blocks of width 32"):
        finetune(settings("--model.depth=3"), images, images, out, resume=True)


def test_the_seed_is_that_of_the_training(images: Path, tmp_path: Path) -> None:
    starts = []
    for number, seed in enumerate((0, 0, 5)):
        finetune(settings(), images, images, tmp_path / str(number), **BRIEF, seed=seed)  # type: ignore[arg-type]
        saved = newest(tmp_path / str(number))
        assert saved is not None
        starts.append(load_classifier(saved).model.state_dict()["encoder.blocks.0.attn.qkv.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_vit_l_is_said_to_need_50_epochs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardpatch.finetune.run.fit", lambda job, progress, after: job.save() or 0)
    advice = "the paper fine-tunes ViT-L for 50 epochs, this run has 100; see --preset paper_large"
    for depth, preset, expected in ((24, "paper", 1), (23, "paper", 0), (24, "paper_large", 0)):
        out = tmp_path / f"{preset}_{depth}"
        finetune(settings(f"--model.depth={depth}"), images, images, out, preset=preset, workers=0)
        assert (out / "log.txt").read_text().count(advice) == expected
        assert read_values(out)["epochs"] == (50.0 if preset == "paper_large" else 100.0)
