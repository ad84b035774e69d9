import os
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure, and a continuous integration must not fail by chance.
hypothesis.settings.register_profile("hardpatch", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("hardpatch")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; a user of the project does not have it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the test data in {SHARED.name}/ beside the checkout")
    return SHARED
