"""Settings that all training verbs but pretrain share: overrides, checks, and the way through a file."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.errors import UserError
from hardpatch.ranges import PASSES
from hardpatch.train.settings import (
    FREE_TO_CHANGE,
    LoopSettings,
    TrainingSettings,
    changed,
    check_loop,
    expect,
    setting,
    to_dict,
    to_yaml,
    too_short,
)


@dataclass(frozen=True)
class Example(TrainingSettings):
    """Settings of a verb."""

    epochs: float | None = setting(10.0, "passes over the images", PASSES)
    scale: tuple[float, float] = setting((0.5, 1.0), "range of a random scale")


def test_overrides_have_the_types_of_the_settings() -> None:
    run = changed(Example(), {"batch_size": 4, "clip": 1, "scale": [0.2, 0.9], "device": "cpu"})
    assert run == Example(batch_size=4, clip=1.0, scale=(0.2, 0.9), device="cpu")
    assert isinstance(run.scale, tuple)
    assert changed(Example(), {}) == Example()


@pytest.mark.parametrize(
    ("values", "epochs", "steps"),
    [({"steps": 3}, None, 3), ({"epochs": 2}, 2, None), ({"steps": 3, "epochs": None}, None, 3), ({}, 10, None)],
)
def test_a_new_length_replaces_the_presets(values: dict[str, Any], epochs: float | None, steps: int | None) -> None:
    run = changed(Example(), values)
    assert (run.epochs, run.steps) == (epochs, steps)


def test_random_weights_have_no_layer_decay_unless_it_is_set() -> None:
    assert changed(Example(), {"weights": "teacher"}).layer_decay == 0.75
    assert changed(Example(), {"weights": "random"}).layer_decay == 1.0
    assert changed(Example(), {"weights": "random", "layer_decay": 0.9}).layer_decay == 0.9
    assert changed(Example(layer_decay=None), {"weights": "random"}).layer_decay is None  # the verb's own default


def test_workers_may_be_auto() -> None:
    assert changed(Example(workers=3), {"workers": "auto"}).workers is None
    assert changed(Example(), {"workers": 2}).workers == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 4}, r"^--batchsize: unknown setting; did you mean 'batch_size'\?$"),
        ({"trian": "x"}, r"^--trian: unknown setting; did you mean 'train'\?$"),
        ({"steps": 3, "epochs": 3}, r"^--steps: not allowed with --epochs; give one of them$"),
        ({"batch_size": "many"}, r"^--batch_size: .*many"),
        ({"device": "gpu"}, r"^--device: .*'auto', 'cpu', 'cuda', 'mps'.*gpu"),
        ({"scale": [1, 2, 3]}, r"^--scale: "),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        changed(Example(), values, ["train"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "--batch_size: expected a whole number from 1, got 0"),
        ({"log_every": 0}, "--log_every: expected a whole number from 1, got 0"),
        ({"steps": 0, "epochs": None}, "--steps: expected a whole number from 1, got 0"),
        ({"epochs": math.inf}, "--epochs: expected a number above 0, up to 1,000,000, got inf"),
        ({"epochs": None}, "--epochs, --steps: expected one of the two; say how long to train"),
        ({"steps": 3}, "--epochs, --steps: expected one of the two; say how long to train"),
        ({"clip": 0.0}, "--clip: expected a number above 0, got 0.0"),
        ({"checkpoint_minutes": -1.0}, "--checkpoint_minutes: expected a number from 0, got -1.0"),
        ({"seed": -1}, "--seed: expected a whole number from 0, got -1"),
        ({"workers": -1}, "--workers: expected a whole number from 0, or auto, got -1"),
        ({"max_bad_fraction": 1.5}, "--max_bad_fraction: expected a number from 0 to 1, got 1.5"),
        ({"accumulation_steps": 3}, "--accumulation_steps: expected a divisor of the batch size 16, got 3"),
        ({"val_every": 0.0}, "--val_every: expected a number above 0, got 0.0"),
        ({"weight_decay": -0.1}, "--weight_decay: expected a number from 0, got -0.1"),
        ({"layer_decay": 1.5}, "--layer_decay: expected a number above 0, up to 1, got 1.5"),
        ({"drop_path": 1.0}, "--drop_path: expected a number from 0, below 1, got 1.0"),
        ({"flip": math.nan}, "--flip: expected a number from 0 to 1, got nan"),
    ],
)
def test_values_that_cannot_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_loop(Example(**values))
    assert str(caught.value) == message


def test_values_at_the_limits() -> None:
    check_loop(Example(weight_decay=0.0, layer_decay=1.0, drop_path=0.0, flip=1.0, max_bad_fraction=0.0))
    check_loop(Example(layer_decay=None, clip=None, workers=0, checkpoint_minutes=0.0, val_every=0.5))
    check_loop(LoopSettings(steps=1, seed=2**63 - 1))


def test_a_tuple_is_shown_as_on_the_command_line() -> None:
    with pytest.raises(UserError, match=r"^--scale: expected two numbers, got 0\.5 1\.0$"):
        expect(Example(), "scale", "two numbers", False)


@given(images=st.integers(1, 10_000), batch_size=st.integers(1, 512), epochs=st.floats(0.001, 100))
def test_length_in_steps(images: int, batch_size: int, epochs: float) -> None:
    run = Example(epochs=epochs, batch_size=batch_size, val_every=epochs / 2)
    total = run.total_steps(images)
    assert total >= 1
    assert abs(total - epochs * images / batch_size) <= 1
    assert run.val_steps(images) == pytest.approx(epochs * images / batch_size / 2)
    assert Example(epochs=None, steps=7).total_steps(images) == 7
    assert Example().val_steps(images) is None


@given(
    epochs=st.none() | st.floats(0.01, 1000),
    clip=st.none() | st.floats(0.01, 10),
    weight_decay=st.floats(0, 1),
    scale=st.tuples(st.floats(0, 1), st.floats(1, 2)),
    workers=st.none() | st.integers(0, 99),
)
def test_saving_and_reading_gives_equal_settings(epochs: float | None, **values: Any) -> None:
    run = Example(epochs=epochs, steps=None if epochs else 3, **values)
    assert changed(Example(), yaml.safe_load(to_yaml(to_dict(run)))) == run


def test_a_file_has_a_line_for_each_setting() -> None:
    run = Example()
    lines = to_yaml(to_dict(run)).splitlines()
    assert [line.split(":")[0] for line in lines] == list(to_dict(run))
    assert "scale: [0.5, 1.0]" in lines


def test_settings_that_may_change_exist() -> None:
    assert set(FREE_TO_CHANGE) <= set(to_dict(Example()))


def test_the_least_number_of_steps_is_for_the_epochs_of_a_preset() -> None:
    preset = TrainingSettings(epochs=10.0, batch_size=4, least_steps=100)
    assert [preset.total_steps(images) for images in (8, 40, 400)] == [100, 100, 1000]
    assert changed(preset, {"epochs": 5.0}).total_steps(8) == 10
    assert changed(preset, {"steps": 7}).total_steps(8) == 7
    assert changed(preset, {"epochs": 5.0, "least_steps": 50}).total_steps(8) == 50
    assert changed(preset, to_dict(preset)) == preset  # as a resumed run reads it
    assert changed(preset, {"batch_size": 8}).total_steps(8) == 100


def test_a_short_training_is_said() -> None:
    run = TrainingSettings(epochs=10.0, batch_size=4)
    assert too_short(run, 400, 1000, "more") is None
    assert too_short(run, 128, 1000, "more") == (
        "128 images and 10 epochs are 320 steps of 4: with fewer than 1,000 the result means little; more"
    )
