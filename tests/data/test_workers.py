import os

import pytest

from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError


def test_resolve_workers() -> None:
    cores = len(os.sched_getaffinity(0))
    assert resolve_workers("auto") == min(cores - 1, 8)
    assert resolve_workers(0) == 0
    assert resolve_workers(5) == 5
    for wrong in (-1, "many", 1.5, True):
        with pytest.raises(UserError, match=r'data\.workers: expected "auto"'):
            resolve_workers(wrong)  # type: ignore[arg-type]
