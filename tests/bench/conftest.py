from types import ModuleType

import pytest

from hardpatch.bench.contenders import find_literal


@pytest.fixture(scope="session")
def literal() -> ModuleType:
    """``benchmarks/literal.py``, which is no part of the package."""
    found = find_literal()
    assert found is not None
    return found
