"""Weight decay of 0: the same parameter groups as with weight decay, and AdamW without it."""

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.bench.contenders import noise_batch
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.train.checkpoint import newest

STEPS = 4


def make_run(weight_decay: float, *more: str) -> RunConfig:
    settings = ["--data.image_size=16", "--model.patch_size=4", "--model.width=16", "--model.depth=1"]
    settings += ["--model.heads=2", "--model.decoder_width=8", "--model.decoder_depth=1", "--model.decoder_heads=2"]
    settings += ["--optim.lr=1e-2", "--optim.warmup=0", "--optim.clip=null", f"--optim.weight_decay={weight_decay}"]
    return config.build({"steps": STEPS, "batch_size": 4}, [*settings, *more])


def make_learner(run: RunConfig) -> Learner:
    return Learner(run, initial_model(run), Fabric(accelerator="cpu", devices=1), STEPS)


def train(learner: Learner, steps: int) -> Learner:
    batch = noise_batch(learner.run, torch.device("cpu"))
    for _ in range(steps):
        learner.train_step(batch, schedule(learner.run, learner.step, STEPS))
    return learner


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.model.named_parameters()}


class SlowAdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019, Algorithm 2), one parameter at a time in float64."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.step_count = 0

    def step(self, weights: dict[str, Tensor], gradients: dict[str, Tensor], lr: float) -> None:
        self.step_count += 1
        first, second = self.run.optim.betas
        for name, gradient in gradients.items():
            gradient = gradient.double()
            self.mean[name] = first * self.mean.get(name, torch.zeros_like(gradient)) + (1 - first) * gradient
            self.square[name] = second * self.square.get(name, torch.zeros_like(gradient)) + (1 - second) * gradient**2
            mean = self.mean[name] / (1 - first**self.step_count)
            square = self.square[name] / (1 - second**self.step_count)
            decay = self.run.optim.weight_decay if gradient.ndim > 1 else 0.0
            weights[name] = weights[name] * (1 - lr * decay) - lr * mean / (square.sqrt() + 1e-8)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_steps_are_those_of_a_slow_adamw(weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(weight_decay)
    learner, slow = make_learner(run), SlowAdamW(run)
    expected = {name: weight.double() for name, weight in weights(learner).items()}

    def slow_step(progress: float) -> None:
        gradients = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
        slow.step(expected, gradients, schedule(run, learner.step, STEPS).lr)

    # called between the backward pass and the optimizer
    monkeypatch.setattr(learner.model.host, "before_update", slow_step)
    train(learner, 2)
    assert (learner.step, slow.step_count) == (2, 2)
    for name, weight in weights(learner).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_matrices_differ_from_those_with_weight_decay() -> None:
    start = weights(make_learner(make_run(0.0)))
    without, with_decay = (weights(train(make_learner(make_run(decay)), 1)) for decay in (0.0, 0.05))
    for name, weight in without.items():
        decays = weight.ndim > 1 and bool(start[name].any())
        assert torch.equal(weight, with_decay[name]) == (not decays), name


def test_groups_are_the_same_with_and_without_weight_decay() -> None:
    names = []
    for weight_decay in (0.0, 0.05):
        learner = make_learner(make_run(weight_decay))
        name_of = {parameter: name for name, parameter in learner.model.named_parameters()}
        groups = learner.adamw.param_groups
        assert [group["weight_decay"] for group in groups] == [0.0, weight_decay]
        names.append([[name_of[parameter] for parameter in group["params"]] for group in groups])
    assert names[0] == names[1]
    assert all(names[0])


def test_weight_decay_that_begins_at_0_can_rise() -> None:
    learner = make_learner(make_run(0.0, "--optim.weight_decay_end=0.4"))
    train(learner, 3)
    assert [group["weight_decay"] for group in learner.adamw.param_groups] == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_a_resumed_run_ends_with_the_same_weights(weight_decay: float, tmp_path: Path) -> None:
    whole = train(make_learner(make_run(weight_decay)), 4)
    train(first := make_learner(make_run(weight_decay)), 2).state.save(tmp_path, 2, {})
    saved = newest(tmp_path)
    assert saved is not None
    resumed = make_learner(make_run(weight_decay))
    resumed.step = resumed.state.restore(saved)
    assert resumed.step == first.step == 2
    train(resumed, 2)
    assert all(map(torch.equal, weights(whole).values(), weights(resumed).values()))
    for one, other in zip(whole.adamw.param_groups, resumed.adamw.param_groups, strict=True):
        assert one["weight_decay"] == other["weight_decay"]
