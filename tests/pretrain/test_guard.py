"""Guard against an upside-down difficulty map."""

from typing import Any

import pytest

from hardpatch.pretrain.guard import direction, stops_mining


def checks(*correlations: float) -> list[dict[str, Any]]:
    """Return the metrics of checks from step 0 on, all with a standard error of 0.1."""
    return [
        {"step": 10 * k, "check_map_correlation": value, "check_map_error": 0.1} for k, value in enumerate(correlations)
    ]


@pytest.mark.parametrize(("value", "expected"), [(-0.3, -1), (-0.2, 0), (0.1, 0), (0.21, 1)])
def test_a_direction_needs_two_standard_errors(value: float, expected: int) -> None:
    assert direction(checks(value)[0]) == expected


def test_no_map_has_no_direction() -> None:
    assert direction({"step": 3}) == direction({"step": 3, "check_map_correlation": -1.0}) == 0


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((-0.9, -0.9), None),  # the untrained encoder does not count
        ((0.0, -0.9, -0.9), True),
        ((0.0, -0.9, 0.1, -0.9), None),
        ((0.0, -0.9, -0.9, 0.9), None),
        ((0.0, -0.9, -0.9, 0.9, 0.9), False),
        ((0.0, 0.9, -0.9), None),
    ],
)
def test_two_checks_in_a_row_decide(values: tuple[float, ...], expected: bool | None, *, stopped: bool) -> None:
    decided = stops_mining(checks(*values), stopped)
    assert decided == (stopped if expected is None else expected)
    assert stops_mining(checks(*values), decided) == decided  # a repeated check changes nothing
