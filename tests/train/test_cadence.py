"""Property tests of when a training logs, saves and evaluates, against slow, obvious versions."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.train.cadence import Cadence, Due

NEVER = 1e9
"""Minutes between checkpoints where only steps count."""
STEPS = st.integers(1, 60)
TOTALS = st.integers(1, 150)


class Clock:
    """Replacement for the module :mod:`time` that a test moves by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr("hardpatch.train.cadence.time", clock)
        yield clock


def by_clock(cadence: Cadence, step: int) -> Due:
    """Return what is due as the training loop asks in a single process."""
    return cadence.due(step, save=cadence.overdue())


def start(*arguments: Any, **keywords: Any) -> Cadence:
    """Build a cadence that counts its minutes by the replaced clock."""
    cadence = Cadence(*arguments, **keywords)
    cadence.saved()
    return cadence


def all_steps(cadence: Cadence) -> dict[int, Due]:
    return {step: by_clock(cadence, step) for step in range(1, cadence.total + 1)}


@given(TOTALS, STEPS, STEPS | st.none())
def test_steps_between_lines_and_checkpoints(total: int, log_every: int, checkpoint_steps: int | None) -> None:
    due = all_steps(start(total, log_every, NEVER, checkpoint_steps, evaluate_at_end=False))
    saves = {total} | set(range(checkpoint_steps or total, total + 1, checkpoint_steps or total))
    assert {step for step in due if due[step].save} == saves
    early = {step for step in (1, 2, 5, 10, 20, 50) if step < min(log_every, total + 1)}
    assert {step for step in due if due[step].log} == early | saves | set(range(log_every, total + 1, log_every))
    assert not any(due[step].evaluate for step in due)


@given(TOTALS, STEPS, STEPS)
def test_checkpoints_that_are_kept_for_good_are_written(total: int, checkpoint_steps: int, keep_every: int) -> None:
    due = all_steps(start(total, total, NEVER, checkpoint_steps, evaluate_at_end=False, keep_every=keep_every))
    saves = {step for step in due if step == total or step % checkpoint_steps == 0 or step % keep_every == 0}
    assert {step for step in due if due[step].save} == saves


@given(TOTALS, st.fractions(Fraction(1, 8), 50, max_denominator=8), st.booleans())
def test_evaluations_follow_each_multiple_of_the_interval(total: int, every: Fraction, at_end: bool) -> None:
    # An interval below one step evaluates after every step.
    due = all_steps(start(total, total, NEVER, None, float(every), at_end))
    expected = {math.ceil(k * every) for k in range(1, 8 * total + 1)} & set(due)
    expected |= {total} if at_end else set()
    assert {step for step in due if due[step].evaluate} == expected
    for step in expected:
        assert due[step] == (True, True, True)  # saved before, with a line of metrics


@given(every=st.integers(1, 4), images=st.integers(1, 3000), batch_size=st.integers(1, 300), k=st.integers(1, 300))
def test_an_interval_in_epochs_loses_nothing_to_rounding(every: int, images: int, batch_size: int, k: int) -> None:
    steps = Fraction(k * every * images, batch_size)
    cadence = start(math.ceil(steps) + 1, 1, NEVER, None, every * images / batch_size, evaluate_at_end=False)
    assert cadence.evaluates(math.ceil(steps))


@given(TOTALS, STEPS, STEPS, st.floats(0.1, 60), st.booleans(), st.floats(0, 2))
def test_every_save_is_logged_and_every_evaluation_saved(
    total: int, log_every: int, checkpoint_steps: int, evaluate_every: float, at_end: bool, minutes: float
) -> None:
    for due in all_steps(start(total, log_every, minutes, checkpoint_steps, evaluate_every, at_end)).values():
        assert due.log >= due.save >= due.evaluate


@given(TOTALS, st.integers(1, 300), st.integers(1, 60))
def test_minutes_count_from_the_last_checkpoint(clock: Clock, total: int, seconds: int, minutes: int) -> None:
    cadence = start(total, total, minutes, None, evaluate_at_end=False)
    saved_at = clock.now
    for step in range(1, total + 1):
        clock.now += seconds
        assert by_clock(cadence, step).save == (step == total or clock.now - saved_at >= 60 * minutes)
        if by_clock(cadence, step).save:
            cadence.saved()
            saved_at = clock.now


def test_asking_changes_nothing(clock: Clock) -> None:
    cadence = start(10, 10, 1.0)
    clock.now += 60.0
    assert by_clock(cadence, 3) == by_clock(cadence, 3) == (True, True, False)
    cadence.saved()
    assert by_clock(cadence, 3) == (False, False, False)


@given(TOTALS, st.sets(st.integers(0, 150)), st.floats(1.0, 60) | st.none())
def test_evaluations_at_given_steps_are_added(total: int, steps: set[int], every: float | None) -> None:
    plain = start(total, total, NEVER, None, every)
    more = start(total, total, NEVER, None, every, evaluate_at=steps)
    for step in range(total + 1):
        assert more.evaluates(step) == (plain.evaluates(step) or step in steps)
        assert more.completes_interval(step) == plain.completes_interval(step)
    assert all(more.due(step).save for step in steps if 0 < step <= total)


@given(TOTALS, st.floats(0.1, 60) | st.none(), st.booleans())
def test_no_evaluation_before_the_first_step(total: int, every: float | None, at_end: bool) -> None:
    assert not start(total, 1, NEVER, None, every, at_end).evaluates(0)


def test_no_minutes_save_after_every_step() -> None:
    assert all(due.save for due in all_steps(start(7, 7, 0.0)).values())
