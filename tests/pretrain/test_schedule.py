import math

import pytest

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.errors import UserError
from hardpatch.pretrain import recipes
from hardpatch.pretrain.schedule import schedule
from hardpatch.schedules import learning_rate


def test_warm_up_and_cosine_by_hand() -> None:
    assert learning_rate(0.0, 1.0, 0.1, 0.2) == 0.0
    assert learning_rate(0.1, 1.0, 0.1, 0.2) == 0.5
    assert learning_rate(0.2, 1.0, 0.1, 0.2) == 1.0
    assert learning_rate(0.6, 1.0, 0.1, 0.2) == pytest.approx(0.55)
    assert learning_rate(1.0, 1.0, 0.1, 0.2) == pytest.approx(0.1)
    assert learning_rate(0.25, 1.0, 0.0, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_simmims_step_by_hand() -> None:
    """At most 4e-4 after 10 of 800 epochs, 4e-5 from epoch 700 on; 100 steps an epoch."""
    run = config.build(recipes.read("simmim_imagenet_base_800"))
    epochs = {0: 0.0, 5: 2e-4, 10: 4e-4, 400: 4e-4, 699.99: 4e-4, 700: 4e-5, 799.99: 4e-5}
    for epoch, lr in epochs.items():
        assert schedule(run, round(100 * epoch), 80_000).lr == pytest.approx(lr, rel=1e-12)
    assert schedule(run, 1, 80_000).lr == pytest.approx(4e-7)
    without_warmup = config.build({"steps": 8}, ["--optim.schedule=step", "--optim.lr=1.0", "--optim.warmup=0"])
    assert [schedule(without_warmup, step, 8).lr for step in range(8)] == [1.0] * 7 + [0.1]


def test_the_schedule_is_a_cosine_unless_it_is_set() -> None:
    """The same bits as before there was a choice, also for a configuration that an earlier version saved."""
    saved = config.to_dict(config.build(recipes.read("imagenet_base_200")))
    for name in ("schedule", "step_at", "step_factor"):
        del saved["optim"][name]
    run = config.build(saved)
    for step in range(0, 1001, 7):
        assert schedule(run, step, 1000).lr == learning_rate(step / 1000, 2.4e-3, 0.0, 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--optim.schedule=step", "--optim.warmup=0.9"],
            "optim.step_at: expected a fraction from the end of the warm-up, 0.9,",
        ),
        (
            ["--optim.schedule=step", "--optim.min_lr=1e-5"],
            "optim.min_lr: only for optim.schedule cosine, leave it out",
        ),
        (["--optim.step_at=0.5"], "optim.step_at: only for optim.schedule step, leave it out with cosine"),
        (["--optim.step_factor=0.5"], "optim.step_factor: only for optim.schedule step, leave it out with cosine"),
        (
            ["--optim.schedule=step", "--optim.step_factor=2"],
            r"optim.step_factor: expected a number from 0 to 1, got 2",
        ),
        (["--optim.schedule=step", "--optim.step_at=1.5"], "optim.step_at: .* to 1, got 1.5"),
    ],
)
def test_what_a_schedule_does_not_use_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build({"steps": 8}, settings)


def test_schedule_of_the_papers_run() -> None:
    run = config.build(recipes.read("imagenet_base_200"))
    assert schedule(run, 5, 100).lr == pytest.approx(1.5e-4 * 4096 / 256)
    middle = schedule(run, 500, 1000)
    assert middle.lr == pytest.approx(learning_rate(0.5, 2.4e-3, 0.0, 0.05))
    assert middle[2:6] == (0.05, 0.25, 0.75, 0.9999)  # weight decay, alpha, mask ratio, momentum
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
