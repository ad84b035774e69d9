import os
from pathlib import Path

import hypothesis
import pytest

# No deadline: a busy machine is no failure. Derandomized in CI, which must not fail by chance.
hypothesis.settings.register_profile("hardpatch", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("hardpatch")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of test data beside the checkout; tests that need it are skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the test data in {SHARED.name}/ beside the checkout")
    return SHARED
