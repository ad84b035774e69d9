import math

import pytest

from hardpatch import config, recipes
from hardpatch.schedules import learning_rate
from hardpatch.train.optim import parameter_groups, schedule
from tests.small import small_hpm


def test_warm_up_and_cosine_by_hand() -> None:
    assert learning_rate(0.0, 1.0, 0.1, 0.2) == 0.0
    assert learning_rate(0.1, 1.0, 0.1, 0.2) == 0.5
    assert learning_rate(0.2, 1.0, 0.1, 0.2) == 1.0
    assert learning_rate(0.6, 1.0, 0.1, 0.2) == pytest.approx(0.55)
    assert learning_rate(1.0, 1.0, 0.1, 0.2) == pytest.approx(0.1)
    assert learning_rate(0.25, 1.0, 0.0, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_schedule_of_the_papers_run() -> None:
    run = config.build(recipes.read("imagenet_base_200"))
    assert schedule(run, 0.05).lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert schedule(run, 0.5) == pytest.approx((learning_rate(0.5, 2.4e-3, 0.0, 0.05), 0.25, 0.9999))
    assert schedule(config.build(recipes.read("mae_imagenet_base_200")), 0.9).alpha == 0.0


def test_no_decay_on_biases_and_norms() -> None:
    model = small_hpm()
    free, decayed = parameter_groups(model, weight_decay=0.05)
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    without = {names[id(p)] for p in free["params"]}
    assert without == {name for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name}
    assert len(free["params"]) + len(decayed["params"]) == len(names)
