import math

import pytest

from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.schedule import schedule
from hardpatch.schedules import learning_rate
from hardpatch.train.optimizer import parameter_groups
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
    assert schedule(run, 5, 100).lr == pytest.approx(1.5e-4 * 4096 / 256)
    now = schedule(run, 500, 1000)
    assert now.lr == pytest.approx(learning_rate(0.5, 2.4e-3, 0.0, 0.05))
    assert now[1:5] == (0.05, 0.25, 0.75, 0.9999)
    assert schedule(config.build(recipes.read("mae_imagenet_base_200")), 90, 100).alpha == 0.0


def test_schedule_of_ibot() -> None:
    settings = ["--method.host=ibot", "--method.momentum_start=0.996", "--method.momentum_end=1.0"]
    settings += ["--method.momentum_schedule=cosine", "--method.momentum_warmup=1.0", "--steps=400"]
    settings += ["--optim.weight_decay=0.04", "--optim.weight_decay_end=0.4", "--method.mask_ratio=0.3"]
    run = config.build({}, [*settings, "--method.mask_ratio_spread=0.2", "--method.predicting_loss=none"])
    begin, middle, end = (schedule(run, step, 400) for step in (0, 200, 400))
    assert [now.momentum for now in (begin, middle, end)] == pytest.approx([0.996, 0.998, 1.0])
    assert [now.weight_decay for now in (begin, middle, end)] == pytest.approx([0.04, 0.22, 0.4])
    assert [schedule(run, step, 400).teacher_temperature for step in (0, 30, 399)] == [0.04, 0.07, 0.07]
    ratios = [schedule(run, step, 400).mask_ratio for step in range(400)]
    assert min(ratios) >= 0.1
    assert max(ratios) <= 0.5
    assert sum(ratios) / 400 == pytest.approx(0.3, abs=3 * 0.4 / 12**0.5 / 20)  # three standard errors
    assert schedule(run, 7, 400) == schedule(run, 7, 400)  # by seed and step alone


def test_no_decay_on_biases_and_norms() -> None:
    model = small_hpm()
    free, decayed = parameter_groups(model, weight_decay=0.05)
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    without = {names[id(p)] for p in free["params"]}
    assert without == {name for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name}
    assert len(free["params"]) + len(decayed["params"]) == len(names)
