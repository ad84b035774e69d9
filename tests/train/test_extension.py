"""Progress and learning rate of a run that was made longer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.errors import UserError
from hardpatch.schedules import learning_rate
from hardpatch.train.extension import Course, Extension, course


def cosine(step: int, total: int) -> float:
    return learning_rate(step / total, 1.0, 0.0, 0.1)


def constant(step: int, total: int) -> float:
    return 0.25


def extend(before: Course, at: int, total: int, how: str = "auto", rate: object = cosine) -> Course:
    extensions = before.extended(at, total, how, lambda step, total: (rate(step, total),))  # type: ignore[operator]
    return Course(total, extensions)


def test_a_constant_rate_is_that_of_a_run_of_the_new_length() -> None:
    longer = extend(Course(10), 10, 20, rate=constant)
    assert longer.extensions == (Extension(10, 10, 20, "same"),)
    again = extend(longer, 20, 40, rate=constant)
    for step in range(40):
        assert again.rate(step, constant) == 0.25
        if step >= 20:
            assert again.progress(step) == step / 40
    assert "exactly as a run of 40 steps from the start" in again.describe(constant)


def test_a_finished_cosine_is_warmed_up_again() -> None:
    longer = extend(Course(10), 10, 30)
    assert longer.extensions == (Extension(10, 10, 30, "rewarm"),)
    rates = [longer.rate(step, cosine) for step in range(30)]
    assert rates[:10] == [cosine(step, 10) for step in range(10)]
    assert rates[10:] == [cosine(step, 20) for step in range(20)]
    assert [longer.progress(step) for step in (0, 5, 10, 20, 29)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert longer.describe(cosine) == (
        "extended after step 10 of 10 to 30 steps: the learning rate, 0 there, is warmed up again to 1 and falls as in "
        "a run of 20 steps; all else stays as it was at the end"
    )


def test_a_high_rate_is_held_and_cooled() -> None:
    longer = extend(Course(100), 50, 150)
    held = cosine(50, 100)
    assert [longer.rate(step, cosine) for step in (50, 90, 130)] == [held] * 3
    assert longer.rate(140, cosine) == pytest.approx(held / 2)
    assert longer.rate(149, cosine) < 0.02 * held
    assert longer.progress(50) == 0.5
    assert longer.progress(100) == 0.75  # what was left, spread over what is left
    assert "is held at 0.587 until step 130 and then falls to 0; all else goes on to its end" in longer.describe(cosine)


def test_a_choice_overrules_and_low_or_rising_rates_are_not_held() -> None:
    assert extend(Course(100), 50, 150, "rewarm").extensions[0].rate == "rewarm"
    assert extend(Course(100), 95, 150).extensions[0].rate == "rewarm"
    assert extend(Course(100), 5, 150).extensions[0].rate == "rewarm"  # within the warm-up
    assert extend(Course(100), 95, 150, "hold").rate(100, cosine) == cosine(95, 100)


def test_what_was_not_trained_yet_is_replaced() -> None:
    longer = extend(Course(10), 10, 30)
    assert extend(longer, 10, 20).extensions == (Extension(10, 10, 20, "rewarm"),)
    assert extend(longer, 8, 10).extensions == ()  # the first plan again
    twice = extend(longer, 20, 50)
    assert twice.extensions == (Extension(10, 10, 30, "rewarm"), Extension(20, 30, 50, "hold"))
    assert twice.rate(30, cosine) == cosine(10, 20)


@given(
    first=st.integers(1, 300),
    lengths=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 200), st.sampled_from(["auto", "rewarm", "hold"]))),
)
def test_progress_never_falls_and_the_rate_stays_in_its_range(
    first: int, lengths: list[tuple[float, int, str]]
) -> None:
    run, start = Course(first), 0
    for share, more, how in lengths[:3]:
        at = start + math.floor(share * (run.total - start))
        if at == 0:
            continue
        run, start = extend(run, at, at + more, how), at
    assert course(run.total, tuple(map(str, run.extensions))).extensions == run.extensions
    progress = [run.progress(step) for step in range(run.total + 1)]
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1.0, abs=1e-12)
    assert max(progress) <= 1.0
    assert all(0.0 <= run.rate(step, cosine) <= 1.0 for step in range(run.total))


@pytest.mark.parametrize(
    ("total", "texts", "message"),
    [
        (20, ["after 10 of 10 steps: 30 steps, rewarm"], "they are of a run of 30 steps, this one has 20"),
        (20, ["10 -> 20"], "extensions: expected lines as --resume writes them"),
        (20, ["after 30 of 30 steps: 20 steps, hold"], "extensions: expected lines as --resume writes them"),
        (
            40,
            ["after 9 of 10 steps: 20 steps, hold", "after 12 of 15 steps: 40 steps, hold"],
            "expected each to go on from the one before it",
        ),
    ],
)
def test_lines_that_do_not_fit(total: int, texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        course(total, tuple(texts))
