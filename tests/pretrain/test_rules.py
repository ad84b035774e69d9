"""Rules of a plan: they keep what the user set, and give a training that can be built, for any set and any time."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.configuration.build import initial_model
from hardpatch.pretrain import rules
from hardpatch.pretrain.plan import duration, short
from hardpatch.pretrain.rules import Draft
from hardpatch.pretrain.set_and_machine import Machine, SetFacts

SET = SetFacts(
    images=3000,
    side=128,
    small=128,
    large=128,
    pixels=128.0**2,
    channels=3,
    dtype="uint8",
    decode_seconds=1e-3,
    distinct=1.0,
    deviation=0.2,
)
CPU = Machine("cpu", "CPU", 2, 8 * 2**30)

FIXED: list[dict[str, Any]] = [
    {},
    {"data.image_size": 96},
    {"data.image_size": [64, 128]},
    {"model.patch_size": 16},
    {"data.image_size": 60, "model.patch_size": 12},
    {"model.size": "tiny"},
    {"model.width": 100},
    {"model.decoder_width": 48},
    {"method.predicting_loss": "none"},
    {"method.host": "simmim"},
    {"method.host": "ibot", "ibot.local_size": 32, "model.patch_size": 8},
    {"method.target": "teacher"},
    {"batch_size": 48, "optim.base_lr": 1e-3},
    {"steps": 100},
    {"epochs": 2.5},
]


def drafted(fixed: dict[str, Any], facts: SetFacts = SET, machine: Machine = CPU, seen: float = 1e6) -> Draft:
    draft = Draft(fixed)
    rules.choose_size(draft, rules.sizes(fixed)[-1], facts)
    rules.choose_loading(draft, facts, machine)
    rules.choose_mining(draft, seen / facts.images)
    rules.choose_optimizer(draft, seen)
    rules.choose_length(draft, seen, facts.images)
    return draft


@settings(max_examples=60, deadline=None)
@given(
    fixed=st.sampled_from(FIXED),
    side=st.integers(8, 4000),
    images=st.integers(1, 10_000_000),
    channels=st.sampled_from([1, 3, 13]),
    seen=st.floats(1, 1e10),
)
def test_every_set_and_time_gets_a_training_that_can_be_built(
    fixed: dict[str, Any], side: int, images: int, channels: int, seen: float
) -> None:
    facts = replace(SET, side=max(side, 32) if fixed else side, images=images, channels=channels)
    draft = drafted(fixed, facts, seen=seen)
    run = draft.build()
    with torch.device("meta"):
        initial_model(run, [0.5] * channels, [0.2] * channels)
    assert draft.chosen.keys().isdisjoint(fixed)
    built = {
        **vars(run),
        **{f"{part}.{k}": v for part in ("data", "model", "optim") for k, v in vars(getattr(run, part)).items()},
    }
    for name, value in fixed.items():
        assert name not in built or built[name] == (tuple(value) if isinstance(value, list) else value)
    assert run.total_steps(images) * run.batch_size <= max(seen, run.batch_size) or draft.length_fixed
    assert (
        run.total_steps(images) * run.batch_size <= max(rules.MAX_EPOCHS * images, run.batch_size) or draft.length_fixed
    )


@given(st.integers(7, 5000))
def test_patches_enlarge_nothing_and_lose_little(limit: int) -> None:
    side, patch = rules.patches(limit)
    assert side % patch == 0
    assert side <= limit
    assert 7 <= side // patch <= 14
    if limit >= 40:
        assert side >= 0.85 * limit


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(28, (28, 4)), (32, (32, 4)), (64, (64, 8)), (96, (96, 12)), (100, (96, 12)), (224, (224, 16))],
)
def test_patches_of_common_sizes(limit: int, expected: tuple[int, int]) -> None:
    assert rules.patches(limit) == expected


def test_a_larger_batch_of_the_user_raises_the_rate_and_lowers_the_steps() -> None:
    small, large = drafted({"batch_size": 32}).build(), drafted({"batch_size": 128}).build()
    assert large.peak_lr == pytest.approx(2 * small.peak_lr, rel=0.05)
    assert small.steps is not None
    assert large.steps == small.steps // 4
    assert drafted({"batch_size": 256, "optim.base_lr": 1e-3}).build().peak_lr == 1e-3


def test_remembering_needs_epochs_and_a_predictor() -> None:
    few, many = drafted({}, seen=3000 * 2), drafted({}, seen=3000 * 50)
    assert (few.build().fast.remember, many.build().fast.remember) == (False, True)
    assert "teacher" in few.reasons
    assert "teacher" not in many.reasons
    plain = drafted({"method.predicting_loss": "none"}, seen=3000 * 50)
    assert not plain.build().fast.remember
    assert "plain host" in plain.reasons["mining"]


def test_images_that_do_not_fit_into_memory_are_decoded_as_they_come() -> None:
    assert drafted({}).build().data.in_memory == "host"
    assert drafted({}, replace(SET, images=10_000_000)).build().data.in_memory == "no"
    assert drafted({}, machine=replace(CPU, memory=None)).build().data.in_memory == "no"


def test_a_batch_is_split_as_the_memory_of_a_gpu_needs() -> None:
    gpu = Machine("cuda", "GPU", 8, 64 * 2**30, 24 * 2**30)
    assert drafted({}, machine=gpu).build().optim.accumulation_steps == "auto"
    assert drafted({}).build().optim.accumulation_steps == 1


def test_what_the_user_set_is_said() -> None:
    assert drafted({"batch_size": 48}).reasons["batch"] == "yours: batch_size 48"
    assert "yours: model.width 100" in drafted({"model.width": 100}).reasons["model"]


def test_a_small_set_does_not_use_all_of_a_long_time() -> None:
    draft = drafted({}, replace(SET, images=10), seen=1e8)
    assert draft.build().total_steps(10) * draft.build().batch_size <= 10 * rules.MAX_EPOCHS
    assert "not all of the time" in draft.reasons["length"]
    assert "hold little to learn from" in replace(SET, images=10).warning()


def test_a_doubtful_set_is_named() -> None:
    assert not SET.warning()
    assert "differ from all others" in replace(SET, distinct=0.02).warning()
    assert "one color" in replace(SET, deviation=0.001).warning()


def test_a_plan_says_where_its_rules_were_not_tried() -> None:
    seen = float(rules.TRIED_IMAGES)
    assert not rules.extrapolation(drafted({"model.width": 128}), seen, "cpu")
    for width, images, device, words in (
        (192, seen, "cpu", "models up to 128 wide"),
        (128, 1.1 * seen, "cpu", "k images seen"),
        (128, seen, "cuda", "a CPU"),
    ):
        said = rules.extrapolation(drafted({"model.width": width}), images, device)
        assert said.startswith("extrapolated: they were tried on ")
        assert words in said
        assert said.count(",") == 0  # the other two are not beyond
    assert "a CPU, models up to 128 wide, up to" in rules.extrapolation(drafted({"model.size": "base"}), 1e9, "cuda")


def test_durations_and_counts_in_words() -> None:
    seconds = [30, 600, 3600, 5400, 4 * 86400, 3e9]
    assert [duration(s) for s in seconds] == ["30 s", "10 min", "1 h", "1 h 30 min", "4.0 days", "95 years"]
    assert [short(n) for n in (950, 1300, 25_000, 1.25e6)] == ["950", "1.3 k", "25 k", "1.2 M"]
    assert math.isclose(float(short(4e7).split()[0]), 40)
