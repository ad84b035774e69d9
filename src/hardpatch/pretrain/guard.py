"""Guard against a difficulty map that is upside down: mining by it would hide the easy patches."""

from collections.abc import Mapping, Sequence
from typing import Any

ERRORS = 2.0
"""Standard errors by which the mean rank correlation has to differ from zero."""
IN_A_ROW = 2
"""Checks in a row that have to agree before mining stops or goes on."""


def direction(check: Mapping[str, Any]) -> int:
    """Return -1 if the map of a check is upside down, 1 if it is upright, 0 if that cannot be told from chance."""
    correlation, error = check.get("check_map_correlation"), check.get("check_map_error")
    if correlation is None or error is None or abs(correlation) <= ERRORS * error:
        return 0
    return 1 if correlation > 0 else -1


def stops_mining(checks: Sequence[Mapping[str, Any]], stopped: bool) -> bool:
    """Return whether mining is to stop, or to stay stopped, after the last of some checks.

    The check before the first step does not count: nothing has been learned by then. The result is the same if a check
    is repeated, as after a crash.

    Args:
        checks: metrics of all checks so far, in their order.
        stopped: mining is stopped already.
    """
    last = [direction(check) for check in checks if check["step"] > 0][-IN_A_ROW:]
    if len(last) == IN_A_ROW and len(set(last)) == 1 and last[0] != 0:
        return last[0] < 0
    return stopped
