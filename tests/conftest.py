import os
from pathlib import Path

import hypothesis
import pytest

from tests.golden import write_golden

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


@pytest.fixture(scope="session", params=["committed", "full"])
def golden_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of files with the numbers of the reference implementations: those of ``tests/golden``, then the full ones.

    The committed files hold the large outputs for the first image only.
    """
    if request.param == "committed":
        return write_golden(tmp_path_factory.mktemp("golden"))
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"needs the full golden files in {SHARED.name}/golden/ beside the checkout; the committed ones ran")
    return folder
