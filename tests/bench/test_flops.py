"""Formula for the FLOPs of a step, against those that torch counts in a real step."""

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hardpatch.bench.contenders import noise_batch
from hardpatch.bench.flops import step_flops
from hardpatch.bench.literal import LiteralLearner
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain import recipes
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner

SHAPES = {
    "square": [],
    "oblong, gray": ["--data.image_size=[16,24]", "--data.channels=1", "--data.mean=computed", "--data.std=computed"],
    "one block each": ["--model.depth=1", "--model.decoder_depth=1"],
    "wide decoders": ["--model.decoder_width=48", "--model.decoder_depth=3", "--method.mask_ratio=0.5"],
    "units, micro-batches": ["--method.mask_unit=8", "--optim.accumulation_steps=2"],
}


FAST = {
    "cross": ["decoder=cross"],
    "some queries": ["prediction_ratio=0.4"],
    "cross, some queries": ["decoder=cross", "prediction_ratio=0.4"],
    "shallow predictor": ["predictor_depth=1"],
    "shared trunk": ["shared_blocks=2"],
    "shared trunk except one block": ["shared_blocks=-1", "prediction_ratio=0.4"],
    "shared trunk, deeper predictor": ["shared_blocks=1", "predictor_depth=3"],
    "small teacher": ["teacher_resolution=0.5"],
    "difficulty memory": ["remember=true"],
    "all": ["decoder=cross", "prediction_ratio=0.4", "predictor_depth=1", "teacher_resolution=0.5"],
}


def run_of(*settings: str) -> RunConfig:
    base = ["--data.image_size=16", "--model.patch_size=4", "--model.width=32", "--model.depth=2", "--model.heads=2"]
    base += ["--model.decoder_width=16", "--model.decoder_depth=2", "--model.decoder_heads=2"]
    return config.build({"steps": 4, "batch_size": 4}, [*base, "--method.alpha_start=0.4", *settings])


def learner_of(run: RunConfig) -> Learner:
    channels = run.data.channel_count
    fabric = Fabric(accelerator="cpu", devices=1)
    target, _ = target_of(run, fabric.device)
    return Learner(run, initial_model(run, [0.5] * channels, [0.2] * channels), fabric, 4, target, images=4)


def counted(learner: Any, run: RunConfig, **values: float) -> int:
    """Count the FLOPs of a step by torch, without fused attention, whose backward pass computes the scores again."""
    batch = noise_batch(run, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        learner.train_step(batch, schedule(run, 0, 4)._replace(**values))
    return counter.get_total_flops()


def total(parts: dict[str, float] | None, run: RunConfig) -> float:
    assert parts is not None
    return sum(parts.values()) * run.batch_size


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("loss", ["relative", "none"])
def test_a_step_has_the_flops_of_the_formula(name: str, loss: str) -> None:
    run = run_of(*SHAPES[name], f"--method.predicting_loss={loss}")
    assert counted(learner_of(run), run) == total(step_flops(run), run)


@pytest.mark.parametrize("name", FAST)
def test_cheaper_settings(name: str) -> None:
    run = run_of("--model.decoder_depth=3", *(f"--fast.{setting}" for setting in FAST[name]))
    learner = learner_of(run)
    assert counted(learner, run) == pytest.approx(total(step_flops(run), run), rel=1e-12)


@pytest.mark.parametrize("name", ["cross", "some queries", "cross, some queries"])
def test_a_cheaper_host(name: str) -> None:
    run = run_of("--method.predicting_loss=none", *(f"--fast.{setting}" for setting in FAST[name]))
    assert counted(learner_of(run), run) == total(step_flops(run), run)


def test_without_mining_the_teacher_does_not_run() -> None:
    run = run_of()
    assert counted(learner_of(run), run, alpha=0.0) == total(step_flops(run, mined=False), run)


def test_with_the_teachers_features_as_target() -> None:
    run = run_of("--method.target=teacher")
    assert counted(learner_of(run), run) == total(step_flops(run), run)
    assert counted(learner_of(run), run, alpha=0.0) == total(step_flops(run, mined=False), run)


@pytest.mark.parametrize("name", ["square", "wide decoders"])
def test_the_literal_algorithm(name: str) -> None:
    run = run_of(*SHAPES[name])
    learner = LiteralLearner(run, initial_model(run), torch.device("cpu"))
    assert counted(learner, run) == total(step_flops(run, literal=True), run)


@pytest.mark.parametrize(
    ("size", "loss", "literal", "least"),
    [
        ("base", "relative", 147, 132),
        ("base", "none", 58, 56),
        ("large", "relative", 301, 286),
        ("large", "none", 124, 122),
    ],
)
def test_at_the_papers_sizes(size: str, loss: str, literal: int, least: int) -> None:
    """Compare GFLOPs per image at 224 px with patches of 16."""
    run = config.build({"steps": 1, "batch_size": 4096}, [f"--model.size={size}", f"--method.predicting_loss={loss}"])
    assert round(total(step_flops(run, literal=True), run) / 4096e9) == literal
    assert round(total(step_flops(run), run) / 4096e9) == least


@pytest.mark.parametrize("size", ["base", "large"])
def test_hpm_fast_takes_fewer_flops_than_mae(size: str) -> None:
    fast = config.build(recipes.read("hpm_fast"), [f"--model.size={size}"])
    mae = config.build(recipes.read("mae_imagenet_base_200"), [f"--model.size={size}"])
    assert total(step_flops(fast), fast) < total(step_flops(mae), mae)


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        (["teacher_resolution=0.5"], 26),
        (["predictor_depth=2"], 24),
        (["remember=true"], 35),
        (["decoder=cross", "prediction_ratio=0.3333", "teacher_resolution=0.5"], 61),
    ],
)
def test_savings_of_the_exact_step(settings: list[str], saved: int) -> None:
    """Compare percentages for ViT-B/16 at 224 px."""
    exact, cheap = (
        config.build({"steps": 1, "batch_size": 4096}, arguments)
        for arguments in ([], [f"--fast.{s}" for s in settings])
    )
    assert round(100 - 100 * total(step_flops(cheap), cheap) / total(step_flops(exact), exact)) == saved


@pytest.mark.parametrize("setting", ["--method.host=simmim", "--method.mask=attention_high"])
def test_unsupported_settings_are_not_counted(setting: str) -> None:
    assert step_flops(run_of(setting)) is None
