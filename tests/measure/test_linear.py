import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.measure.features import Features
from hardpatch.measure.linear import LinearResult, LinearRow, Optimizer, _optimizer, linear_probe


def clusters(images: int, classes: int, noise: float, seed: int, width: int = 16) -> Features:
    """Features around one corner per class, linearly separable if ``noise`` is small."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    features = 2.0 * F.one_hot(labels, width) + noise * torch.randn(images, width, generator=generator)
    return Features(features, labels, [], torch.arange(len(labels)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_separable_classes_are_all_recognized() -> None:
    train, val = clusters(200, 8, 0.2, 0), clusters(80, 8, 0.2, 1)
    result = linear_probe(train, val, classes=8, generator=seeded(), base_lrs=[0.1, 1.0], epochs=20)
    assert (result.top1, result.top5) == (1.0, 1.0)


def test_labels_without_a_pattern_stay_at_chance() -> None:
    train, val = clusters(400, 1, 1.0, 0), clusters(400, 1, 1.0, 1)
    train, val = train._replace(labels=torch.arange(400) % 10), val._replace(labels=torch.arange(400) % 10)
    result = linear_probe(train, val, classes=10, generator=seeded(), base_lrs=[0.1], epochs=5)
    assert result.top1 < 0.2
    assert 0.35 < result.top5 < 0.65


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_sweep_equals_single_runs(optimizer: Optimizer) -> None:
    train, val = clusters(150, 6, 1.5, 0), clusters(120, 6, 1.5, 1)
    rates = [0.003, 0.3, 5.0]

    def run(base_lrs: list[float]) -> tuple[LinearRow, ...]:
        return linear_probe(
            train,
            val,
            classes=6,
            generator=seeded(),
            base_lrs=base_lrs,
            optimizer=optimizer,
            epochs=4,
            batch_size=32,
        ).rows

    sweep = run(rates)
    assert sweep == tuple(run([lr])[0] for lr in rates)
    assert len({row.top1 for row in sweep}) > 1


def test_the_result_depends_on_the_generator_and_not_on_global_randomness() -> None:
    train, val = clusters(100, 6, 2.0, 0), clusters(200, 6, 2.0, 1)

    def run(seed: int) -> LinearResult:
        return linear_probe(train, val, classes=6, generator=seeded(seed), base_lrs=[1.0], epochs=2)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert run(0) == first
    assert any(run(seed).rows != first.rows for seed in (1, 2, 3))


def test_equals_a_probe_of_torch_layers() -> None:
    """Compare with torch's own layers and optimizer, and the schedule of MAE's lr_sched.py."""
    train, val = clusters(64, 4, 1.5, 0), clusters(400, 4, 1.5, 1)
    # small enough for the eps of the norm to matter
    train, val = (part._replace(features=part.features * 1e-3) for part in (train, val))
    epochs, warmup, batch, base_lr = 6, 2, 16, 0.4
    result = linear_probe(
        train,
        val,
        classes=4,
        generator=seeded(),
        base_lrs=[base_lr],
        epochs=epochs,
        warmup_epochs=warmup,
        batch_size=batch,
    )

    generator = seeded()
    layer = nn.Linear(16, 4)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    probe = nn.Sequential(nn.BatchNorm1d(16, affine=False, eps=1e-6), layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    peak = base_lr * batch / 256
    for epoch in range(epochs):
        order = torch.randperm(64, generator=generator)
        for step in range(4):
            progress = epoch + step / 4
            if progress < warmup:
                lr = peak * progress / warmup
            else:
                lr = peak * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (epochs - warmup)))
            optimizer.param_groups[0]["lr"] = lr
            indices = order[step * batch : (step + 1) * batch]
            optimizer.zero_grad()
            F.cross_entropy(probe(train.features[indices]), train.labels[indices]).backward()
            optimizer.step()
    correct = probe.eval()(val.features).argmax(dim=1) == val.labels
    assert result.top1 == pytest.approx(float(correct.float().mean()), abs=1e-6)
    assert 0.3 < result.top1 < 1.0  # else any probe would pass


@given(seed=st.integers(0, 10**6))
def test_lars_equals_that_of_mae(seed: int) -> None:
    """Compare two steps with the formula of MAE's util/lars.py: weights by their trust ratio, biases plain."""
    generator = seeded(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights, biases = [nn.Parameter(draw(3, 5)) for _ in range(2)], [nn.Parameter(draw(3)) for _ in range(2)]
    rates = [0.5, 2.0]
    optimizer = _optimizer("lars", weights, biases)
    for group, lr in zip(optimizer.param_groups, rates * 2, strict=True):
        group["lr"] = lr
    expected = [tensor.detach().clone() for tensor in [*weights, *biases]]
    momenta = [torch.zeros_like(tensor) for tensor in expected]
    for _ in range(2):
        for i, (tensor, lr) in enumerate(zip([*weights, *biases], rates * 2, strict=True)):
            tensor.grad = draw(*tensor.shape)
            trust = 0.001 * expected[i].norm() / tensor.grad.norm() if tensor.ndim > 1 else 1.0
            momenta[i] = 0.9 * momenta[i] + trust * tensor.grad
            expected[i] = expected[i] - lr * momenta[i]
        optimizer.step()
    for tensor, value in zip([*weights, *biases], expected, strict=True):
        torch.testing.assert_close(tensor.detach(), value)


@pytest.mark.parametrize(
    ("images", "requested", "used"),
    [(1000, 16384, 100), (200, 16384, 64), (40, 16384, 40), (1000, 80, 80), (40, 32, 32)],
)
def test_the_batch_fits_the_training_set(images: int, requested: int, used: int) -> None:
    train = clusters(images, 2, 0.1, 0)
    result = linear_probe(train, train, classes=2, generator=seeded(), batch_size=requested, base_lrs=[1.0], epochs=1)
    assert result.batch_size == used
    assert bool(result.note) == (used != requested)


def test_progress_counts_epochs() -> None:
    calls: list[tuple[int, int | None]] = []
    train = clusters(20, 2, 0.1, 0)
    linear_probe(
        train, train, classes=2, generator=seeded(), epochs=3, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_the_best_is_the_first_of_equals() -> None:
    rows = (LinearRow(0.1, 0.4, 0.9), LinearRow(0.3, 0.6, 0.8), LinearRow(1.0, 0.6, 0.9))
    result = LinearResult(rows, "sgd", 90, 256, 1000, 100, "")
    assert (result.best_lr, result.top1, result.top5) == (0.3, 0.6, 0.8)
    assert json.loads(json.dumps(result.to_dict()))["rows"][0] == {"base_lr": 0.1, "top1": 0.4, "top5": 0.9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_lrs": []}, "^base_lrs: "),
        ({"base_lrs": [0.1, 0.0]}, "^base_lrs: "),
        ({"epochs": 0}, "epochs >= 1"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs < epochs"),
        ({"batch_size": 1}, "batch_size >= 2"),
        ({"optimizer": "adam"}, "^optimizer: expected 'sgd' or 'lars', got 'adam'"),
        ({"classes": 1}, "^train: expected labels in 0 .. 0, got 0 .. 1"),
    ],
)
def test_invalid_arguments_are_named(options: dict[str, Any], message: str) -> None:
    train = clusters(20, 2, 0.1, 0)
    with pytest.raises(UserError, match=message):
        linear_probe(train, train, **{"classes": 2, "generator": seeded(), **options})


def test_a_single_training_image_cannot_be_normalized() -> None:
    one = clusters(1, 1, 0.1, 0)
    with pytest.raises(UserError, match=r"^train: expected at least two images"):
        linear_probe(one, one, classes=1, generator=seeded())
