import math

import pytest

from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.schedule import schedule
from hardpatch.schedules import learning_rate


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
    middle = schedule(run, 500, 1000)
    assert middle.lr == pytest.approx(learning_rate(0.5, 2.4e-3, 0.0, 0.05))
    assert middle[2:] == (0.05, 0.25, 0.75, 0.9999)  # weight decay, alpha, mask ratio, momentum
    assert schedule(config.build(recipes.read("mae_imagenet_base_200")), 90, 100).alpha == 0.0


def test_schedule_of_ibot() -> None:
    settings = ["--method.host=ibot", "--method.momentum_start=0.996", "--method.momentum_end=1.0"]
    settings += ["--method.momentum_schedule=cosine", "--method.momentum_warmup=1.0", "--steps=400"]
    settings += ["--optim.weight_decay=0.04", "--optim.weight_decay_end=0.4", "--method.mask_ratio=0.3"]
    run = config.build({}, [*settings, "--method.mask_ratio_spread=0.2", "--method.predicting_loss=none"])
    begin, middle, end = (schedule(run, step, 400) for step in (0, 200, 400))
    assert [values.momentum for values in (begin, middle, end)] == pytest.approx([0.996, 0.998, 1.0])
    assert [values.weight_decay for values in (begin, middle, end)] == pytest.approx([0.04, 0.22, 0.4])
    ratios = [schedule(run, step, 400).mask_ratio for step in range(400)]
    assert min(ratios) >= 0.1
    assert max(ratios) <= 0.5
    assert sum(ratios) / 400 == pytest.approx(0.3, abs=3 * 0.4 / 12**0.5 / 20)  # three standard errors
    assert schedule(run, 7, 400) == schedule(run, 7, 400)  # by seed and step alone
    assert begin.metrics(run).keys() == {"lr", "weight_decay", "alpha", "mask_ratio", "momentum"}


def test_metrics_leave_out_what_never_changes() -> None:
    run = config.build(recipes.read("imagenet_base_200"))
    assert schedule(run, 0, 10).metrics(run).keys() == {"lr", "alpha", "momentum"}


@pytest.mark.parametrize(
    ("warmup", "temperatures"),
    [(0.075, [0.04, 0.055, 0.07, 0.07]), (0.15, [0.04, 0.0475, 0.055, 0.07]), (0.0, [0.07] * 4)],
)
def test_temperature_of_ibots_teacher(warmup: float, temperatures: list[float]) -> None:
    settings = ["--model.size=tiny", "--model.depth=1", "--ibot.outputs=8", "--ibot.head_hidden=8"]
    settings += ["--method.host=ibot", f"--ibot.teacher_temperature_warmup={warmup}"]
    host = initial_model(config.build({"steps": 400}, settings)).host
    scheduled = [host.scheduled_metrics(step / 400) for step in (0, 15, 30, 399)]
    assert [values["teacher_temperature"] for values in scheduled] == pytest.approx(temperatures)
