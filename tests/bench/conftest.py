import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def literal() -> ModuleType:
    """``benchmarks/literal.py``, which is no part of the package."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "literal.py"
    spec = importlib.util.spec_from_file_location("literal", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
