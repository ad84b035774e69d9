from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; a user of the project does not have it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the test data in {SHARED.name}/ beside the checkout")
    return SHARED
