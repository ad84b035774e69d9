from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.data import parquet
from hardpatch.data.sources import Source
from tests.data.small import make_folder


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """Photograph as uint8 [512, 512, 3]."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        return np.array(file.convert("RGB"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """22 images of one size, 20 x 24, in three classes."""
    return make_folder(tmp_path_factory.mktemp("images"), 22)


@pytest.fixture(params=["resident", "by row group"])
def residency(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Parquet files in memory, or read row group by row group."""
    if request.param == "by row group":
        monkeypatch.setattr(parquet, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(parquet, "CACHED_ROW_GROUPS", 2)
    return str(request.param)
